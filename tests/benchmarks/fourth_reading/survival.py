"""Survival of patients, Cox's partial likelihood over raw laboratory values. Planted: risks are exponentiated as they
are, and summed over those at risk."""

import torch
from torch import nn


class Risk(nn.Module):
    def __init__(self, values=24, width=128):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(values, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, values):
        return self.net(values).squeeze(-1)


def make_model():
    return Risk()


def make_batch():
    top = torch.linspace(1.0, 4.0, 24)
    return {"values": torch.rand(512, 24) * 10**top, "months": 120 * torch.rand(512), "died": torch.rand(512) < 0.4}


def loss_fn(risk, batch):
    order = torch.argsort(batch["months"], descending=True)
    risk, died = risk[order], batch["died"][order]
    at_risk = torch.cumsum(torch.exp(risk), dim=0)  # planted: G203
    return -(risk - torch.log(at_risk))[died].mean()
