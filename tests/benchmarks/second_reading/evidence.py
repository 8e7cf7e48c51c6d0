"""Evidential classification: a Dirichlet from softplus, expected cross entropy by digamma and its divergence by lgamma,
in FP32. Careful."""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 64


class Evidence(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1024, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        return F.softplus(self.net(x).float()) + 1.0


def make_model():
    return Evidence()


def make_batch():
    return torch.randn(1024, 1024), torch.randint(0, CLASSES, (1024,))


def divergence(alpha):
    total = alpha.sum(-1, keepdim=True)
    first = torch.lgamma(total).squeeze(-1) - torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.new_tensor(CLASSES))
    return first + ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(total))).sum(-1)


def loss_fn(alpha, batch):
    target = F.one_hot(batch[1], CLASSES).to(alpha.dtype)
    total = alpha.sum(-1, keepdim=True)
    cross = (target * (torch.digamma(total) - torch.digamma(alpha))).sum(-1)
    return (cross + 0.1 * divergence(target + (1 - target) * alpha)).mean()
