"""Capsules with dynamic routing; squash by the norm. Planted: s / |s| where the capsule is zero: 0 / 0, infinite
gradient."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def squash(s, dim=-1):
    sq = torch.sum(s**2, dim=dim, keepdim=True)
    return sq / (1 + sq) * (s / torch.sqrt(sq))  # planted: G206|G205


class Caps(nn.Module):
    def __init__(self, n_in=128, d_in=8, n_out=10, d_out=16, iters=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 9, 2)
        self.prim = nn.Conv2d(64, 8 * d_in, 7, 2)
        self.w = nn.Parameter(0.01 * torch.randn(n_in, n_out, d_out, d_in))
        self.iters, self.d_in = iters, d_in

    def forward(self, x):
        u = self.prim(F.relu(self.conv(x))).view(x.shape[0], -1, self.d_in)
        u = squash(u)
        u_hat = torch.einsum("nokd,bnd->bnok", self.w[: u.shape[1]], u)
        b = torch.zeros(x.shape[0], u.shape[1], self.w.shape[1], device=x.device)
        for _ in range(self.iters):
            c = torch.softmax(b, dim=2)
            v = squash((c.unsqueeze(-1) * u_hat).sum(1))
            b = b + (u_hat * v.unsqueeze(1)).sum(-1)
        return v.norm(dim=-1)


def make_model():
    return Caps()


def make_batch():
    return torch.rand(16, 1, 28, 28), torch.randint(0, 10, (16,))


def loss_fn(output, batch):
    y = F.one_hot(batch[1], 10).float()
    return (y * F.relu(0.9 - output) ** 2 + 0.5 * (1 - y) * F.relu(output - 0.1) ** 2).sum(1).mean()
