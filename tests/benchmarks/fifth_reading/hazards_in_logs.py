"""Cox loss with logcumsumexp and an evidential head for the variance."""

import torch
import torch.nn.functional as F
from torch import nn


class Survival(nn.Module):
    def __init__(self, d=32, h=128):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d, h), nn.BatchNorm1d(h), nn.GELU(), nn.Linear(h, h), nn.GELU())
        self.risk = nn.Linear(h, 1)
        self.evidence = nn.Linear(h, 4)

    def forward(self, x):
        h = self.body(x)
        gamma, nu, alpha, beta = self.evidence(h).chunk(4, -1)
        return self.risk(h).squeeze(-1), gamma, F.softplus(nu) + 1e-3, F.softplus(alpha) + 1.0, F.softplus(beta) + 1e-3


def nig_nll(y, gamma, nu, alpha, beta):
    two_blambda = 2 * beta * (1 + nu)
    return (
        0.5 * torch.log(torch.pi / nu)
        - alpha * torch.log(two_blambda)
        + (alpha + 0.5) * torch.log(nu * (y - gamma) ** 2 + two_blambda)
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + 0.5)
    )


def make_model():
    return Survival()


def make_batch():
    n = 256
    return torch.randn(n, 32), (torch.rand(n) * 10, torch.randint(0, 2, (n,)).float(), torch.randn(n, 1))


def loss_fn(output, batch):
    risk, *nig = output
    time, event, y = batch[1]
    order = torch.argsort(time, descending=True)
    r, e = risk[order], event[order]
    cox = -((r - torch.logcumsumexp(r, 0)) * e).sum() / e.sum().clamp(min=1)
    return cox + nig_nll(y, *nig).mean()
