"""A reaction network that is learnt: each reaction's rate is an Arrhenius law in logarithms, and the concentrations
follow by Euler steps. Temperatures from 900 to 2,000 K."""

import torch
import torch.nn as nn
import torch.nn.functional as F

GAS = 8.314e-3  # kJ / (mol K)


class Reactions(nn.Module):
    def __init__(self, species=6, reactions=8, steps=10, pace=0.01):
        super().__init__()
        self.steps, self.pace = steps, pace
        self.orders = nn.Parameter(0.1 * torch.randn(species, reactions))
        self.makes = nn.Parameter(0.1 * torch.randn(reactions, species))
        self.log_rate = nn.Parameter(torch.zeros(reactions))
        self.barrier = nn.Parameter(torch.full((reactions,), 10.0))

    def forward(self, amounts, kelvin):
        hot = (1.0 / (GAS * kelvin))[:, None]
        orders = self.orders.clamp(0.0, 2.5)
        ways = []
        for _ in range(self.steps):
            logs = amounts.clamp(1e-8, 50.0).log()
            log_k = (logs[..., None] * orders).sum(-2) + self.log_rate - self.barrier * hot
            rate = log_k.clamp(max=10.0).exp()
            amounts = amounts + self.pace * (rate[..., None] * self.makes).sum(-2)
            ways.append(amounts)
        return torch.stack(ways, 1)


def make_model():
    return Reactions()


def make_batch():
    amounts = torch.rand(64, 6)
    amounts[:, 4:] = 0.0
    return {"amounts": amounts, "kelvin": 900.0 + 1100.0 * torch.rand(64), "way": torch.rand(64, 10, 6)}


def loss_fn(output, batch):
    return F.l1_loss(output, batch["way"])
