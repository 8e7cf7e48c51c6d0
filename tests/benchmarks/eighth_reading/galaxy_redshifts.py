"""Redshifts of galaxies from fluxes in seven bands, some below zero: magnitudes by the inverse hyperbolic sine,
colours, a mixture of densities, and the probability integral as a check in training. Careful: roots and
logarithms of fluxes are taken where they are above zero, by filling before and not after."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Luptitudes(nn.Module):
    """Magnitudes that stay finite for fluxes of zero and below; the softening is learnt."""

    def __init__(self, bands):
        super().__init__()
        self.log_soft = nn.Parameter(torch.zeros(bands))

    def forward(self, flux):
        soft = F.softplus(self.log_soft) + 1e-3
        return -1.0857 * (torch.asinh(flux / (2 * soft)) + torch.log(soft))


def signal_features(flux, error):
    snr = flux / error.clamp(min=1e-3)
    bright = snr > 1.0
    filled = torch.where(bright, snr, torch.ones_like(snr))
    return torch.where(bright, torch.log10(filled), 0.0), torch.where(bright, filled.sqrt() - 1, 0.0), bright.float()


class Residual(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.a, self.b = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        value, gate = self.a(self.norm(x)).chunk(2, dim=-1)
        return x + self.b(value * torch.sigmoid(gate))


class Redshifts(nn.Module):
    def __init__(self, bands=7, dim=96, depth=3, parts=5):
        super().__init__()
        self.luptitudes = Luptitudes(bands)
        self.first = nn.Linear(bands * 4 + bands - 1, dim)
        self.body = nn.Sequential(*[Residual(dim) for _ in range(depth)])
        self.out = nn.Linear(dim, 3 * parts)

    def forward(self, flux, error):
        magnitude = self.luptitudes(flux)
        colour = magnitude[:, 1:] - magnitude[:, :-1]
        x = torch.cat([magnitude, colour, *signal_features(flux, error)], dim=-1)
        logit, mean, raw = self.out(self.body(self.first(x))).chunk(3, dim=-1)
        return logit.log_softmax(-1), F.softplus(mean), F.softplus(raw) + 0.01


def mixture_nll(log_share, mean, scale, z):
    z = torch.log1p(z)[:, None]
    standard = (z - mean) / scale
    log_normal = -0.5 * standard.square() - torch.log(scale) - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_share + log_normal, dim=-1)


def calibration(log_share, mean, scale, z):
    """The distance of the sorted probability integrals from the uniform one."""
    below = 0.5 * (1 + torch.erf((torch.log1p(z)[:, None] - mean) / (scale * math.sqrt(2.0))))
    pit = (log_share.exp() * below).sum(-1).sort().values
    uniform = (torch.arange(len(pit), device=pit.device) + 0.5) / len(pit)
    return (pit - uniform).abs().mean()


def make_model():
    return Redshifts()


def make_batch():
    error = 0.1 + torch.rand(512, 7)
    flux = torch.randn(512, 1).exp() * torch.rand(512, 7) * 3.0 + error * torch.randn(512, 7)
    return (flux, error), torch.rand(512) * 2.0


def loss_fn(output, batch):
    return mixture_nll(*output, batch[1]).mean() + 0.1 * calibration(*output, batch[1])
