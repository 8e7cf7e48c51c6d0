"""A Hamiltonian network: the field is the gradient of a learnt energy, taken inside of the forward, and four
leapfrog steps go through it. Careful."""

import torch
import torch.nn.functional as F
from torch import nn


class Hamiltonian(nn.Module):
    def __init__(self, bodies=16, width=512, step=0.05):
        super().__init__()
        self.step = step
        self.potential = nn.Sequential(
            nn.Linear(2 * bodies, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 1)
        )
        self.log_mass = nn.Parameter(torch.zeros(2 * bodies))

    def force(self, q):
        with torch.enable_grad():
            q = q if q.requires_grad else q.detach().requires_grad_()
            energy = self.potential(q).sum()
            (gradient,) = torch.autograd.grad(energy, q, create_graph=True)
        return -gradient

    def forward(self, q, p):
        mass = self.log_mass.exp()
        places = []
        for _ in range(4):
            p = p + 0.5 * self.step * self.force(q)
            q = q + self.step * p / mass
            p = p + 0.5 * self.step * self.force(q)
            places.append(q)
        return torch.stack(places, 1)


def make_model():
    return Hamiltonian()


def make_batch():
    return (torch.randn(512, 32), torch.randn(512, 32)), torch.randn(512, 4, 32)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
