"""Gauge readings: a mixture of experts in BF16 by hand whose blocks go up and down in precision."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.norm(x.float()).to(torch.bfloat16)
        h = self.fc1(h)
        h = F.gelu(h.float()).to(torch.bfloat16)  # planted: G302
        return x + self.fc2(h)


class Gauge(nn.Module):
    def __init__(self, width=1024, depth=6):
        super().__init__()
        self.inp = nn.Linear(64, width).to(torch.bfloat16)
        self.blocks = nn.ModuleList(Up(width) for _ in range(depth))
        for b in self.blocks:
            b.fc1.to(torch.bfloat16)
            b.fc2.to(torch.bfloat16)
        self.out = nn.Linear(width, 16)

    def forward(self, x):
        h = self.inp(x.to(torch.bfloat16))
        for b in self.blocks:
            h = b(h)
        return self.out(h.float())


def make_model():
    return Gauge()


def make_batch():
    torch.manual_seed(0)
    return torch.randn(32, 512, 64), torch.randn(32, 512, 16)


def loss_fn(out, batch):
    return F.mse_loss(out, batch[1])
