"""An interatomic potential with continuous filters (SchNet); forces are gradients of the energy. Planted: all pairs
get a distance, also an atom and itself, where the root has an infinite gradient and a mask afterwards does not
help; and the repulsion divides by that distance."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ShiftedSoftplus(nn.Module):
    def forward(self, x):
        return F.softplus(x) - math.log(2.0)


class Interaction(nn.Module):
    def __init__(self, width, gaussians):
        super().__init__()
        self.filter = nn.Sequential(nn.Linear(gaussians, width), ShiftedSoftplus(), nn.Linear(width, width))
        self.inner = nn.Linear(width, width, bias=False)
        self.outer = nn.Sequential(nn.Linear(width, width), ShiftedSoftplus(), nn.Linear(width, width))

    def forward(self, x, smeared, cutoff):
        filters = self.filter(smeared) * cutoff[..., None]
        return x + self.outer((filters * self.inner(x)[:, None]).sum(2))


class SchNet(nn.Module):
    def __init__(self, width=128, depth=3, gaussians=48, reach=5.0):
        super().__init__()
        self.reach = reach
        self.embed = nn.Embedding(100, width, padding_idx=0)
        self.register_buffer("centres", torch.linspace(0, reach, gaussians))
        self.interactions = nn.ModuleList(Interaction(width, gaussians) for _ in range(depth))
        self.read = nn.Sequential(nn.Linear(width, width // 2), ShiftedSoftplus(), nn.Linear(width // 2, 1))

    def energy(self, numbers, places):
        ways = places[:, :, None] - places[:, None]
        distance = torch.sqrt((ways**2).sum(-1))  # planted: G206
        other = ~torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
        smeared = torch.exp(-10.0 * (distance[..., None] - self.centres) ** 2)
        cutoff = 0.5 * (torch.cos(distance * math.pi / self.reach) + 1) * (distance < self.reach) * other
        x = self.embed(numbers)
        for interaction in self.interactions:
            x = interaction(x, smeared, cutoff)
        repulsion = (other * (0.3 / distance) ** 12).sum((1, 2))  # planted: G205
        return self.read(x).float().sum((1, 2)) + repulsion

    def forward(self, numbers, places):
        places = places.detach().requires_grad_()
        energy = self.energy(numbers, places)
        (gradient,) = torch.autograd.grad(energy.sum(), places, create_graph=True)
        return energy, -gradient


def make_model():
    return SchNet()


def make_batch():
    return (torch.randint(1, 10, (32, 24)), torch.rand(32, 24, 3) * 6), (torch.randn(32), torch.randn(32, 24, 3))


def loss_fn(output, batch):
    (energy, forces), (true_energy, true_forces) = output, batch[1]
    return F.l1_loss(energy, true_energy) + 100 * F.mse_loss(forces, true_forces)
