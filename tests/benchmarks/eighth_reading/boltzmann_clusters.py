"""A Boltzmann generator: a coupling flow over the places of 13 particles, trained by the energy of what it makes.
Planted: distances are taken of each particle to itself too, and a power of zero below zero is infinite before
the mask takes it away by a product."""

import math

import torch
import torch.nn as nn


class Coupling(nn.Module):
    def __init__(self, size, hidden, swap):
        super().__init__()
        self.swap = swap
        self.net = nn.Sequential(nn.Linear(size // 2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.scale, self.shift = nn.Linear(hidden, size // 2), nn.Linear(hidden, size // 2)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def forward(self, x):
        a, b = x.chunk(2, dim=-1)
        if self.swap:
            a, b = b, a
        h = self.net(a)
        log_scale = torch.tanh(self.scale(h))
        b = b * log_scale.exp() + self.shift(h)
        parts = (b, a) if self.swap else (a, b)
        return torch.cat(parts, dim=-1), log_scale.sum(-1)


class LennardJones(nn.Module):
    """The energy of a cluster, in units of the depth of the well, beside a weak spring to the centre."""

    def __init__(self, particles, rm=1.0, spring=0.5):
        super().__init__()
        self.rm, self.spring = rm, spring
        self.register_buffer("off_diagonal", 1.0 - torch.eye(particles))

    def forward(self, places):
        delta = places[:, :, None] - places[:, None]
        d2 = delta.square().sum(-1)
        inverse = (self.rm**2 / d2) ** 3  # planted: G205
        pair = (inverse.square() - 2 * inverse) * self.off_diagonal
        centred = places - places.mean(1, keepdim=True)
        return 0.5 * pair.sum((1, 2)) + 0.5 * self.spring * centred.square().sum((1, 2))


def soft_cap(energy, limit=1e4):
    """Linear up to the limit, logarithmic above."""
    over = (energy - limit).clamp(min=0.0)
    return energy.clamp(max=limit) + torch.log1p(over)


class Generator(nn.Module):
    def __init__(self, particles=13, dims=2, hidden=128, depth=6):
        super().__init__()
        self.particles, self.dims = particles, dims
        self.layers = nn.ModuleList(Coupling(particles * dims, hidden, bool(i % 2)) for i in range(depth))
        self.energy = LennardJones(particles)

    def forward(self, z):
        x, log_det = z, z.new_zeros(z.shape[0])
        for layer in self.layers:
            x, gained = layer(x)
            log_det = log_det + gained
        energy = soft_cap(self.energy(x.view(-1, self.particles, self.dims)))
        prior = 0.5 * z.square().sum(-1) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return energy - log_det - prior


def make_model():
    return Generator()


def make_batch():
    return torch.randn(128, 26), None


def loss_fn(output, batch):
    return output.mean()
