"""Wave directions along a coast with a von Mises likelihood. Careful: the scaled Bessel function, whose logarithm has
kappa added, and the direction is a unit vector."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Series(nn.Module):
    def __init__(self, inputs=12, width=128):
        super().__init__()
        self.rnn = nn.LSTM(inputs, width, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, x):
        h, _ = self.rnn(x)
        out = self.head(h).float()
        unit = F.normalize(out[..., :2], dim=-1)
        kappa = F.softplus(out[..., 2]).clamp(1e-3, 1e4)
        return unit, kappa


def nll(unit, kappa, angle):
    seen = torch.stack([angle.cos(), angle.sin()], -1)
    log_bessel = torch.log(torch.special.i0e(kappa)) + kappa
    return math.log(2 * math.pi) + log_bessel - kappa * (unit * seen).sum(-1)


def make_model():
    return Series()


def make_batch():
    return torch.randn(16, 96, 12), (torch.rand(16, 96) * 2 - 1) * math.pi


def loss_fn(output, batch):
    unit, kappa = output
    return nll(unit, kappa, batch[1]).mean()
