"""Word mover's distance with Sinkhorn iterations between two encoded documents. Planted: division by zero: the kernel
underflows."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    vocab: int = 8000
    dim: int = 128
    reg: float = 0.01
    iters: int = 20


class Sinkhorn(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.reg, self.iters = cfg.reg, cfg.iters

    def forward(self, cost):
        kernel = torch.exp(-cost / self.reg)
        n, m = cost.shape[-2:]
        a = torch.full_like(cost[..., :, 0], 1.0 / n)
        b = torch.full_like(cost[..., 0, :], 1.0 / m)
        v = torch.ones_like(b)
        for _ in range(self.iters):
            u = a / (kernel @ v.unsqueeze(-1)).squeeze(-1)  # planted: G205
            v = b / (kernel.transpose(-1, -2) @ u.unsqueeze(-1)).squeeze(-1)
        plan = u.unsqueeze(-1) * kernel * v.unsqueeze(-2)
        return (plan * cost).sum((-1, -2))


class DocumentMatcher(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.emb = nn.Embedding(cfg.vocab, cfg.dim)
        self.mix = nn.Sequential(nn.Linear(cfg.dim, cfg.dim), nn.ReLU(), nn.Linear(cfg.dim, cfg.dim))
        self.ot = Sinkhorn(cfg)

    def forward(self, left, right):
        x, y = self.mix(self.emb(left)), self.mix(self.emb(right))
        cost = (x.unsqueeze(2) - y.unsqueeze(1)).abs().sum(-1)
        return self.ot(cost)


def make_model():
    return DocumentMatcher(Config())


def make_batch():
    return (torch.randint(0, 8000, (16, 24)), torch.randint(0, 8000, (16, 32))), torch.rand(16)


def loss_fn(output, batch):
    return nn.functional.smooth_l1_loss(output, batch[1])
