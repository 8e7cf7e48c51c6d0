"""BYOL; the momentum encoder is updated inside the step, everything lives in BF16. Planted: EMA of BF16 weights:
steps of 0.004 are lost."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F


def head(i, h, o):
    return nn.Sequential(nn.Linear(i, h), nn.LayerNorm(h), nn.ReLU(), nn.Linear(h, o))


class BYOL(nn.Module):
    def __init__(self, dim=256, tau=0.996):
        super().__init__()
        self.online = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, dim), nn.ReLU(), head(dim, 512, 128))
        self.predictor = head(128, 512, 128)
        self.target = copy.deepcopy(self.online)
        for p in self.target.parameters():
            p.requires_grad_(False)
        self.tau = tau

    @torch.no_grad()
    def momentum_update(self):
        for o, t in zip(self.online.parameters(), self.target.parameters(), strict=True):
            t.data = self.tau * t.data + (1 - self.tau) * o.data  # planted: G220

    def forward(self, a, b):
        self.momentum_update()
        p = self.predictor(self.online(a))
        with torch.no_grad():
            z = self.target(b)
        return (2 - 2 * F.cosine_similarity(p.float(), z.float(), dim=-1)).mean()


def make_model():
    return BYOL().to(torch.bfloat16)


def make_batch():
    return tuple(torch.randn(32, 3, 32, 32).bfloat16() for _ in range(2)), None


def loss_fn(output, batch):
    return output
