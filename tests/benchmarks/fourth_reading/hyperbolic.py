"""Classes in the Poincare ball. Planted: norms are clamped to 1 - 1e-5 in 16 bits, which is 1 there, and atanh of 1
is infinite."""

import torch
from torch import nn


class Ball(nn.Module):
    def __init__(self, inputs=128, width=256, d=32, classes=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, d))
        self.classes = nn.Linear(d, classes)

    @staticmethod
    def length(x):
        return torch.einsum("bd,bd->b", x, x).add(1e-4).sqrt().unsqueeze(-1)

    def to_tangent(self, x):
        size = self.length(x)
        inside = size.clamp(max=1 - 1e-5)
        return torch.atanh(inside) * x / size  # planted: G213

    def forward(self, x):
        return self.classes(self.to_tangent(self.net(x)))


def make_model():
    return Ball()


def make_batch():
    return 3 * torch.randn(256, 128), torch.randint(0, 64, (256,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
