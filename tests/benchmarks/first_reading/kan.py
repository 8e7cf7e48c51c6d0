"""A Kolmogorov-Arnold network for tabular regression: splines on a fixed uniform grid plus a SiLU branch. Careful:
the knots are never equal, so no interval of the recursion is empty; the bases stay in the FP32 of the grid."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class SplineLinear(nn.Module):
    def __init__(self, inner, outer, intervals=8, order=3, low=-2.0, high=2.0):
        super().__init__()
        self.order = order
        step = (high - low) / intervals
        self.register_buffer("knots", torch.arange(-order, intervals + order + 1) * step + low)
        self.base = nn.Parameter(torch.empty(outer, inner))
        self.spline = nn.Parameter(0.1 * torch.randn(outer, inner, intervals + order) / (intervals + order))
        nn.init.kaiming_uniform_(self.base, a=5**0.5)

    def bases(self, x):
        x, knots = x.unsqueeze(-1), self.knots
        found = ((x >= knots[:-1]) & (x < knots[1:])).to(knots.dtype)
        for k in range(1, self.order + 1):
            left = (x - knots[: -(k + 1)]) / (knots[k:-1] - knots[: -(k + 1)])
            right = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
            found = left * found[..., :-1] + right * found[..., 1:]
        return found

    def forward(self, x):
        smooth = F.linear(F.silu(x), self.base)
        return smooth + F.linear(self.bases(x).flatten(-2), self.spline.flatten(-2))


class KAN(nn.Module):
    def __init__(self, widths=(64, 256, 256, 8)):
        super().__init__()
        self.layers = nn.ModuleList(SplineLinear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for layer in self.layers:
            x = layer(torch.tanh(x))
        return x


def make_model():
    return KAN()


def make_batch():
    return torch.randn(1024, 64), torch.randn(1024, 8)


def loss_fn(output, batch):
    return F.smooth_l1_loss(output, batch[1])
