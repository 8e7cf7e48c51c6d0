"""Long convolutions by FFT with implicit filters (Hyena), written by hand. Planted: the signal that comes out of a
linear layer goes into the FFT as it is, which has no BF16 kernel and, at 2 x 1000 steps, none in FP16 either."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Filter(nn.Module):
    def __init__(self, width, length, bands=8, hidden=64):
        super().__init__()
        t = torch.linspace(0, 1, length)[:, None]
        waves = 2 * math.pi * t * torch.linspace(1, bands, bands)
        self.register_buffer("features", torch.cat([t, waves.sin(), waves.cos()], 1))
        self.register_buffer("rates", torch.linspace(0.3, 1.5, width))
        self.register_buffer("t", t)
        self.net = nn.Sequential(nn.Linear(2 * bands + 1, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self):
        return (self.net(self.features) * torch.exp(-self.t * self.rates * 4)).transpose(0, 1)


class Hyena(nn.Module):
    def __init__(self, width, length):
        super().__init__()
        self.length = length
        self.project = nn.Linear(width, 3 * width)
        self.short = nn.Conv1d(3 * width, 3 * width, 3, padding=2, groups=3 * width)
        self.filter = Filter(width, length)
        self.skip = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, width)

    def forward(self, u):
        z = self.short(self.project(u).transpose(1, 2))[..., : self.length]
        x1, x2, v = z.chunk(3, dim=1)
        v = v * x1
        n = 2 * self.length
        spectrum = torch.fft.rfft(v, n=n)  # planted: G403
        kernel = torch.fft.rfft(self.filter().float(), n=n) / n
        y = torch.fft.irfft(spectrum * kernel, n=n, norm="forward")[..., : self.length]
        y = (y + v * self.skip[:, None]) * x2
        return self.out(y.transpose(1, 2))


class Model(nn.Module):
    def __init__(self, width=256, length=1000, depth=3, vocabulary=512):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mixers = nn.ModuleList(Hyena(width, length) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.embed(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x)


def make_model():
    return Model()


def make_batch():
    ids = torch.randint(0, 512, (8, 1000))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.transpose(1, 2), batch[1])
