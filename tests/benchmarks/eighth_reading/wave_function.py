"""Variational Monte Carlo of a small atom: a network's determinants and a Jastrow factor, the energy with the
potential in closed form and the kinetic part by a score estimate. Careful: particles do not meet themselves,
and determinants stay in logarithms."""

import torch
import torch.nn as nn


class Envelope(nn.Module):
    def __init__(self, determinants, electrons):
        super().__init__()
        self.decay = nn.Parameter(torch.ones(determinants, electrons))
        self.weight = nn.Parameter(torch.ones(determinants, electrons))

    def forward(self, r):
        return self.weight[:, None] * torch.exp(-self.decay[:, None].abs() * r[:, None, :, None])


class Backflow(nn.Module):
    """Features of one electron, mixed with means of what it has to the others."""

    def __init__(self, dim, depth):
        super().__init__()
        self.first = nn.Linear(4, dim)
        self.pair = nn.Linear(4, dim)
        self.layers = nn.ModuleList(nn.Linear(3 * dim, dim) for _ in range(depth))

    def forward(self, one, two):
        h, g = torch.tanh(self.first(one)), torch.tanh(self.pair(two)).mean(2)
        for layer in self.layers:
            mean = h.mean(1, keepdim=True).expand_as(h)
            h = h + torch.tanh(layer(torch.cat([h, mean, g], dim=-1)))
        return h


class WaveFunction(nn.Module):
    def __init__(self, electrons=4, dim=32, determinants=8, depth=2):
        super().__init__()
        self.backflow = Backflow(dim, depth)
        self.orbitals = nn.Linear(dim, determinants * electrons)
        self.envelope = Envelope(determinants, electrons)
        self.cusp = nn.Parameter(torch.ones(()))
        self.mix = nn.Parameter(torch.zeros(determinants))
        self.electrons, self.determinants = electrons, determinants
        self.register_buffer("eye", torch.eye(electrons))
        self.register_buffer("pairs", torch.triu_indices(electrons, electrons, offset=1))

    def distances(self, x):
        nucleus = torch.sqrt(x.square().sum(-1) + 1e-10)
        delta = x[:, :, None] - x[:, None]
        between = torch.sqrt(delta.square().sum(-1) + self.eye) * (1 - self.eye)
        return nucleus, delta, between

    def forward(self, x):
        r, delta, between = self.distances(x)
        h = self.backflow(torch.cat([x, r[..., None]], -1), torch.cat([delta, between[..., None]], -1))
        phi = self.orbitals(h).unflatten(-1, (self.determinants, self.electrons)).permute(0, 2, 1, 3)
        sign, log_det = torch.linalg.slogdet(phi * self.envelope(r))
        total = log_det + self.mix
        top = total.amax(1, keepdim=True).detach()
        amplitude = (sign * torch.exp(total - top)).sum(1)
        apart = between[:, self.pairs[0], self.pairs[1]]
        jastrow = -(self.cusp.square() / 2 / (1 + self.cusp.abs() + apart)).sum(1)
        log_psi = torch.log(amplitude.abs() + 1e-12) + top.squeeze(1) + jastrow
        potential = (1 / apart).sum(1) - self.electrons * (1 / r).sum(1)
        return log_psi, potential


def make_model():
    return WaveFunction()


def make_batch():
    return torch.randn(256, 4, 3), None


def loss_fn(output, batch):
    log_psi, energy = output
    energy = energy.detach()
    middle = energy.median()
    spread = (energy - middle).abs().mean()
    clipped = torch.clamp(energy, middle - 5 * spread, middle + 5 * spread)
    return 2 * ((clipped - clipped.mean()) * log_psi).mean()
