"""VICReg with the variance hinge on a bare standard deviation. Planted: root of a variance that collapses to zero:
infinite gradient."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def off_diagonal(m):
    n = m.shape[0]
    return m.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


class VICReg(nn.Module):
    coeffs = {"sim": 25.0, "std": 25.0, "cov": 1.0}

    def __init__(self, dim=256):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.expander = nn.Sequential(nn.Linear(1024, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim))

    def variance(self, z):
        std = torch.sqrt(z.var(dim=0))  # planted: G206|G208
        return F.relu(1 - std).mean()

    def covariance(self, z):
        z = z - z.mean(0)
        return off_diagonal(z.T @ z / (z.shape[0] - 1)).pow(2).sum() / z.shape[1]

    def forward(self, a, b):
        x, y = self.expander(self.backbone(a)), self.expander(self.backbone(b))
        c = self.coeffs
        loss = c["sim"] * F.mse_loss(x, y) + c["std"] * 0.5 * (self.variance(x) + self.variance(y))
        return loss + c["cov"] * (self.covariance(x) + self.covariance(y))


def make_model():
    return VICReg()


def make_batch():
    return (torch.randn(64, 3, 32, 32), torch.randn(64, 3, 32, 32)), None


def loss_fn(output, batch):
    return output
