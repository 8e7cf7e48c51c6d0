"""Attention from the brain's rhythms: filtered channels are compared by how steady the angle between them is. A channel
whose electrode fell off is zero throughout."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class PhaseLocking(nn.Module):
    def __init__(self, channels=16, bands=4, samples=512, hidden=64, kinds=3):
        super().__init__()
        middle = torch.tensor([6.0, 10.0, 20.0, 35.0])[:bands]
        self.middle, self.width = nn.Parameter(middle), nn.Parameter(torch.full((bands,), 2.0))
        self.register_buffer("hertz", torch.fft.rfftfreq(samples, 1 / 128.0))
        self.channels, self.samples = channels, samples
        pairs = channels * (channels - 1) // 2
        self.head = nn.Sequential(
            nn.LayerNorm(bands * pairs), nn.Linear(bands * pairs, hidden), nn.GELU(), nn.Linear(hidden, kinds)
        )

    def forward(self, x):
        spectrum = torch.fft.rfft(x.float(), dim=-1)
        away = (self.hertz[None] - self.middle[:, None]) / (self.width[:, None].abs() + 0.5)
        kept = torch.exp(-0.5 * away.square())
        analytic = torch.fft.ifft(spectrum[:, None] * kept[None, :, None], n=self.samples, dim=-1)
        unit = analytic / analytic.abs()  # planted: G205
        locked = (unit @ unit.mH / self.samples).abs()
        row, column = torch.triu_indices(self.channels, self.channels, 1)
        return self.head(locked[..., row, column].flatten(1))


def make_model():
    return PhaseLocking()


def make_batch():
    x = torch.randn(16, 16, 512)
    x[3, 5] = 0.0
    x[11, 2] = 0.0
    return x, torch.randint(0, 3, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output.float(), batch[1])
