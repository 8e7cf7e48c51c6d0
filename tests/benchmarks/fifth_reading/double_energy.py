"""Hamiltonian-like dynamics model; the energy is computed in double because 'physics needs it'. Planted: product in
FP64."""

import torch
from torch import nn


class Energy(nn.Module):
    def __init__(self, dim=64, hidden=512):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.mass = nn.Parameter(torch.eye(hidden) + 0.01 * torch.randn(hidden, hidden))
        self.out = nn.Linear(hidden, dim)

    def forward(self, q):
        h = self.net(q)
        k = torch.matmul(h.double(), self.mass.double())  # planted: G407
        return self.out(k.float())


class Rollout(nn.Module):
    def __init__(self, steps=3, dt=0.05):
        super().__init__()
        self.field = Energy()
        self.steps, self.dt = steps, dt

    def forward(self, q):
        for _ in range(self.steps):
            q = q + self.dt * self.field(q)
        return q


def make_model():
    return Rollout()


def make_batch():
    q = torch.randn(256, 64)
    return q, q.roll(1, 0)


def loss_fn(output, batch):
    return (output - batch[1]).pow(2).mean()
