"""A coupling flow with rational quadratic splines. Careful: widths, heights and slopes have lower bounds, so no
division or logarithm is near zero; the splines run in FP32."""

import math

import torch
import torch.nn.functional as F
from torch import nn

BINS, BOUND, LEAST = 8, 3.0, 1e-3


def knots(raw):
    shares = LEAST + (1 - LEAST * BINS) * raw.softmax(-1)
    places = F.pad(shares.cumsum(-1), (1, 0)) * 2 * BOUND - BOUND
    return places, places[..., 1:] - places[..., :-1]


def spline(x, raw):
    raw = raw.float()
    xs, widths = knots(raw[..., :BINS])
    ys, heights = knots(raw[..., BINS : 2 * BINS])
    slopes = F.pad(LEAST + F.softplus(raw[..., 2 * BINS : 3 * BINS - 1]), (1, 1), value=1.0)
    inside = (x >= -BOUND) & (x <= BOUND)
    safe = x.clamp(-BOUND + 1e-4, BOUND - 1e-4)[..., None]
    index = (safe >= xs[..., :-1]).sum(-1, keepdim=True) - 1

    def at(t):
        return t.gather(-1, index).squeeze(-1)

    width, height, x0, y0 = at(widths), at(heights), at(xs[..., :-1]), at(ys[..., :-1])
    delta, d0, d1 = height / width, at(slopes[..., :-1]), at(slopes[..., 1:])
    t = (safe.squeeze(-1) - x0) / width
    rest = t * (1 - t)
    bottom = delta + (d0 + d1 - 2 * delta) * rest
    y = y0 + height * (delta * t * t + d0 * rest) / bottom
    top = delta**2 * (d1 * t * t + 2 * delta * rest + d0 * (1 - t) ** 2)
    log_slope = torch.log(top) - 2 * torch.log(bottom)
    return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))


class Coupling(nn.Module):
    def __init__(self, dim, width, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(
            nn.Linear(dim // 2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, dim // 2 * 3 * BINS),
        )  # fmt: skip

    def forward(self, x):
        a, b = x.flip(-1).chunk(2, -1) if self.flip else x.chunk(2, -1)
        b, log_slope = spline(b, self.net(a).view(*b.shape, 3 * BINS))
        return torch.cat([a, b], -1), log_slope.sum(-1)


class SplineFlow(nn.Module):
    def __init__(self, dim=64, width=256, depth=4):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(dim, width, i % 2 == 1) for i in range(depth))

    def forward(self, x):
        total = torch.zeros(x.shape[0], device=x.device)
        for layer in self.layers:
            x, log_slope = layer(x)
            total = total + log_slope
        return x, total


def make_model():
    return SplineFlow()


def make_batch():
    return torch.randn(512, 64), torch.zeros(512)


def loss_fn(output, batch):
    z, log_slope = output
    return (0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) - log_slope).mean()
