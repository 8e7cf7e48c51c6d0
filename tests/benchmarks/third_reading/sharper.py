"""Super-resolution x2 in the manner of EDSR with a Charbonnier loss. Planted: its eps of 1e-6 is squared and
added to differences in 16 bits, where FP16 rounds 1e-12 away."""

import torch
from torch import nn


class ResBlock(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, 1, 1), nn.ReLU(True), nn.Conv2d(n, n, 3, 1, 1))

    def forward(self, x):
        return x + self.body(x).mul(0.1)


class Sharper(nn.Module):
    def __init__(self, n=64, blocks=8):
        super().__init__()
        self.head = nn.Conv2d(3, n, 3, 1, 1)
        self.body = nn.Sequential(*[ResBlock(n) for _ in range(blocks)], nn.Conv2d(n, n, 3, 1, 1))
        self.tail = nn.Sequential(nn.Conv2d(n, 4 * n, 3, 1, 1), nn.PixelShuffle(2), nn.Conv2d(n, 3, 3, 1, 1))

    def forward(self, low):
        x = self.head(low)
        return self.tail(x + self.body(x))


def charbonnier(made, wanted, eps=1e-6):
    difference = made - wanted.to(made.dtype)
    return torch.sqrt(difference * difference + eps**2).mean()  # planted: G206


def make_model():
    return Sharper()


def make_batch():
    return torch.rand(16, 3, 48, 48), torch.rand(16, 3, 96, 96)


def loss_fn(made, batch):
    return charbonnier(made, batch[1])
