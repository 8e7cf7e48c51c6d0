"""Selective state space layer, sequential scan as in mamba-minimal."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class SSM(nn.Module):
    def __init__(self, d, n=16, rank=8):
        super().__init__()
        self.n, self.rank = n, rank
        self.x_proj = nn.Linear(d, rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(rank, d)
        dt = torch.exp(torch.rand(d) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, n + 1).float().repeat(d, 1)))
        self.D = nn.Parameter(torch.ones(d))

    def forward(self, u):
        A = -torch.exp(self.A_log.float())
        delta, B, C = self.x_proj(u).split([self.rank, self.n, self.n], -1)
        delta = F.softplus(self.dt_proj(delta))
        dA = torch.exp(delta.unsqueeze(-1) * A)
        dBu = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        h, ys = torch.zeros_like(dA[:, 0]), []
        for t in range(u.shape[1]):
            h = dA[:, t] * h + dBu[:, t]
            ys.append(torch.einsum("bdn,bn->bd", h, C[:, t].to(h.dtype)))
        return torch.stack(ys, 1) + u * self.D


class MambaBlock(nn.Module):
    def __init__(self, d=64):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.inp = nn.Linear(d, 4 * d, bias=False)
        self.conv = nn.Conv1d(2 * d, 2 * d, 4, groups=2 * d, padding=3)
        self.ssm = SSM(2 * d)
        self.out = nn.Linear(2 * d, d, bias=False)

    def forward(self, x):
        n = x.shape[1]
        u, z = self.inp(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :n].transpose(1, 2))
        return x + self.out(self.ssm(u) * F.silu(z))


class Mamba(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(256, 64)
        self.blocks = nn.ModuleList([MambaBlock() for _ in range(2)])
        self.head = nn.Linear(64, 256)

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = b(x)
        return self.head(x)


def make_model():
    return Mamba()


def make_batch():
    x = torch.randint(0, 256, (4, 32))
    return x, x.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.transpose(1, 2), batch[1])
