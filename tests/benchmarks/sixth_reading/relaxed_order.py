"""Learning to rank through a relaxed sort (NeuralSort). Planted: scores, 16 bits from the last layer, are divided by a
temperature of 1e-3 before the softmax: over 65.5 they are infinite in FP16, and inf - inf is NaN."""

import torch
import torch.nn as nn


class Scorer(nn.Module):
    def __init__(self, features=136, width=256):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.out = nn.Linear(width, 1)

    def forward(self, docs):
        return self.out(self.body(docs)).squeeze(-1)


def relaxed_sort(scores, tau=1e-3):
    n = scores.shape[-1]
    far = (scores[..., :, None] - scores[..., None, :]).abs().sum(-1)
    rank = n + 1 - 2 * torch.arange(1, n + 1, device=scores.device, dtype=torch.float32)
    spread = scores / tau  # planted: G201
    logits = rank[:, None] * spread[..., None, :] - far[..., None, :] / tau
    return torch.softmax(logits, dim=-1)


def make_model():
    return Scorer()


def make_batch():
    return torch.randn(32, 40, 136), torch.randint(0, 5, (32, 40)).float()


def loss_fn(output, batch):
    gain = 2.0 ** batch[1] - 1
    place = relaxed_sort(output)
    discount = 1 / torch.log2(torch.arange(2, 42, device=output.device).float())
    got = (place @ gain.to(place.dtype)[..., None]).squeeze(-1)
    best = gain.sort(-1, descending=True).values
    return 1 - ((got * discount).sum(-1) / (best * discount).sum(-1).clamp(min=1e-6)).mean()
