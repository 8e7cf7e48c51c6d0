"""Mahalanobis metric learning: the covariance is inverted inside the autocast region. Planted: inverse has no 16-bit
kernel: raises under autocast."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Mahalanobis(nn.Module):
    def __init__(self, shrink=0.1):
        super().__init__()
        self.shrink = shrink

    def forward(self, z, centres):
        zc = z - z.mean(0)
        cov = zc.t().mm(zc) / (z.shape[0] - 1)
        cov = (1 - self.shrink) * cov + self.shrink * torch.eye(z.shape[1], device=z.device, dtype=cov.dtype)
        inv = cov.inverse()  # planted: G404
        d = z[:, None] - centres[None]
        return torch.einsum("nkd,de,nke->nk", d, inv, d)


class Classifier(nn.Module):
    def __init__(self, d_in=64, dim=32, classes=12):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d_in, 128), nn.GELU(), nn.Linear(128, dim))
        self.centres = nn.Parameter(torch.randn(classes, dim))
        self.metric = Mahalanobis()

    def forward(self, x):
        return -self.metric(self.net(x), self.centres)


def make_model():
    return Classifier()


def make_batch():
    return torch.randn(128, 64), torch.randint(0, 12, (128,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
