"""Neural ODE with fixed steps; time is accumulated in the dtype of the state of a BF16 model. Planted: steps of 0.002
are lost beside 1 in BF16: time stands still."""

import torch
import torch.nn as nn


class Field(nn.Module):
    def __init__(self, dim=32, hidden=256):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim + 1, hidden), nn.SiLU(), nn.Linear(hidden, dim))

    def forward(self, t, y):
        return self.net(torch.cat([y, t.expand(y.shape[0], 1)], -1))


class NODE(nn.Module):
    def __init__(self, steps=40, t1=4.0):
        super().__init__()
        self.f = Field()
        self.steps, self.dt = steps, 0.002

    def forward(self, y):
        t = torch.ones((), dtype=torch.bfloat16, device=y.device)
        for _ in range(self.steps):
            y = y + self.dt * self.f(t.to(y.dtype), y)
            t = t + self.dt  # planted: G220
        return y


def make_model():
    return NODE()


def make_batch():
    y = torch.randn(128, 32)
    return y, y.roll(1, 1)


def loss_fn(output, batch):
    return (output - batch[1]).square().mean()
