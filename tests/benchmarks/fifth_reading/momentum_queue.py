"""BYOL twin: FP32 weights, momentum encoder by lerp, stop gradient."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F


class MoCo(nn.Module):
    def __init__(self, dim=128, queue=1024, tau=0.999, temperature=0.2):
        super().__init__()
        self.q = nn.Sequential(nn.Flatten(), nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, dim))
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=1))
        self.tau, self.temperature = tau, temperature

    @torch.no_grad()
    def keys(self, x):
        for p, q in zip(self.k.parameters(), self.q.parameters(), strict=True):
            p.data.mul_(self.tau).add_(q.data, alpha=1 - self.tau)
        return F.normalize(self.k(x), dim=1)

    def forward(self, a, b):
        q, k = F.normalize(self.q(a), dim=1), self.keys(b)
        pos = (q * k).sum(-1, keepdim=True)
        neg = q @ self.queue.t()
        return torch.cat([pos, neg], 1) / self.temperature


def make_model():
    return MoCo()


def make_batch():
    return (torch.randn(32, 3, 32, 32), torch.randn(32, 3, 32, 32)), torch.zeros(32, dtype=torch.long)


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
