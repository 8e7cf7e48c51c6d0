"""Fake quantisation of activations with a dynamic scale, straight-through estimator. Planted: the floor 1e-8 is zero
in FP16."""

import torch
from torch import nn


class RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class ActQuant(nn.Module):
    def __init__(self, bits=8, floor=1e-8):
        super().__init__()
        self.qmax = 2 ** (bits - 1) - 1
        self.floor = floor

    def forward(self, x):
        scale = (x.detach().abs().amax(dim=-1, keepdim=True) / self.qmax).clamp(min=self.floor)
        return RoundSTE.apply(x / scale).clamp(-self.qmax - 1, self.qmax) * scale  # planted: G205


class QBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.q1, self.q2 = ActQuant(), ActQuant()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        h = torch.relu(self.fc1(self.q1(x)))
        return x + self.fc2(self.q2(h))


class QMLP(nn.Module):
    def __init__(self, dim=256, depth=4, classes=16):
        super().__init__()
        self.stem = nn.Linear(64, dim)
        self.blocks = nn.ModuleList(QBlock(dim) for _ in range(depth))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks:
            x = b(x)
        return self.head(x)


def make_model():
    return QMLP()


def make_batch():
    return torch.randn(128, 64), torch.randint(0, 16, (128,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
