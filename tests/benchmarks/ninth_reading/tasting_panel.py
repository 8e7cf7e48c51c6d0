"""Which of two wines do tasters like better? A probit model over the two wines' chemistry, with a taster's own noise;
the logarithm of the normal's distribution is torch's own, which holds far out too."""

import torch
import torch.nn as nn


class Panel(nn.Module):
    def __init__(self, measures=16, hidden=64, tasters=128):
        super().__init__()
        self.value = nn.Sequential(
            nn.Linear(measures, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        self.noise = nn.Embedding(tasters, 1)
        nn.init.zeros_(self.noise.weight)

    def forward(self, left, right, taster):
        gap = (self.value(left) - self.value(right)).float().squeeze(-1)
        noise = torch.exp(self.noise(taster).float().squeeze(-1).clamp(-4.0, 4.0))
        return gap / noise


def make_model():
    return Panel()


def make_batch():
    return {
        "left": torch.randn(256, 16),
        "right": torch.randn(256, 16),
        "taster": torch.randint(0, 128, (256,)),
        "liked": torch.randint(0, 2, (256,)).float() * 2 - 1,
    }


def loss_fn(output, batch):
    return -torch.special.log_ndtr(batch["liked"] * output).mean()
