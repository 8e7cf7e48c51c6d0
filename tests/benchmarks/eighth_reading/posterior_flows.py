"""Posteriors of simulators by planar and radial flows whose parameters a network gives for each observation.
Careful: the conditions that keep a planar map invertible, so that its determinant stays above zero, and
logarithms of what is above zero by its making."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Summary(nn.Module):
    """A set of draws as one vector: means of what each gives, beside their spread."""

    def __init__(self, size, dim):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(size, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, draws):
        h = self.each(draws)
        return F.silu(self.out(torch.cat([h.mean(1), h.std(1)], dim=-1)))


def planar(z, u, w, b):
    """One planar step; ``u`` is moved along ``w`` until w.u is over -1."""
    wu = (w * u).sum(-1, keepdim=True)
    u = u + (F.softplus(wu) - 1 - wu) * w / (w.square().sum(-1, keepdim=True) + 1e-6)
    a = torch.tanh((z * w).sum(-1, keepdim=True) + b)
    slope = ((1 - a.square()) * (w * u).sum(-1, keepdim=True)).squeeze(-1)
    return z + u * a, torch.log((1 + slope).abs() + 1e-6)


def radial(z, centre, raw_alpha, raw_beta):
    alpha = F.softplus(raw_alpha) + 1e-3
    beta = F.softplus(raw_beta) - alpha
    r = torch.sqrt((z - centre).square().sum(-1, keepdim=True) + 1e-8)
    h = 1 / (alpha + r)
    grown = F.softplus(raw_beta) * h + r * h  # 1 + beta h
    log_det = (z.shape[-1] - 1) * torch.log(grown + 1e-6) + torch.log((grown - beta * r * h * h).clamp(min=1e-6))
    return z + beta * h * (z - centre), log_det.squeeze(-1)


class PosteriorFlow(nn.Module):
    def __init__(self, size=4, unknowns=3, dim=64, steps=3):
        super().__init__()
        self.summary = Summary(size, dim)
        self.base = nn.Linear(dim, 2 * unknowns)
        self.planar = nn.ModuleList(nn.Linear(dim, 2 * unknowns + 1) for _ in range(steps))
        self.radial = nn.ModuleList(nn.Linear(dim, unknowns + 2) for _ in range(steps))

    def forward(self, draws, theta):
        h = self.summary(draws)
        z, log_det = theta, theta.new_zeros(theta.shape[0])
        for first, second in zip(self.planar, self.radial, strict=True):
            u, w, b = first(h).split([theta.shape[1], theta.shape[1], 1], dim=-1)
            z, one = planar(z, u, w, b)
            centre, a, c = second(h).split([theta.shape[1], 1, 1], dim=-1)
            z, two = radial(z, centre, a, c)
            log_det = log_det + one + two
        mean, log_scale = self.base(h).chunk(2, dim=-1)
        log_scale = 3 * torch.tanh(log_scale / 3)
        standard = (z - mean) * torch.exp(-log_scale)
        return log_det - (0.5 * standard.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)


def make_model():
    return PosteriorFlow()


def make_batch():
    theta = torch.randn(256, 3)
    draws = theta[:, None, :1] + torch.exp(0.3 * theta[:, None, 1:2]) * torch.randn(256, 20, 4)
    return (draws, theta), None


def loss_fn(output, batch):
    return -output.mean()
