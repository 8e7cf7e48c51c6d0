"""Cells at two times of an experiment: a net moves the early ones, and unbalanced optimal transport in logarithms
says how far they are from the late ones."""

import torch
import torch.nn as nn


class Drift(nn.Module):
    def __init__(self, genes=48, hidden=128):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(genes, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, genes),
        )
        self.grow = nn.Linear(genes, 1)

    def forward(self, cells):
        return cells + self.net(cells), 0.5 * torch.tanh(self.grow(cells)).squeeze(-1)


def transport(a, b, log_mass, blur=0.1, reach=1.0, rounds=20):
    """Cost of moving the clouds onto one another, (n, d) and (m, d)."""
    cost = (a[:, None] - b[None]).square().mean(-1)
    log_a = torch.log_softmax(log_mass, 0)
    log_b = cost.new_full((b.shape[0],), -torch.log(torch.tensor(float(b.shape[0]))).item())
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    give = reach / (reach + blur)
    for _ in range(rounds):
        f = -give * blur * torch.logsumexp((g[None] - cost) / blur + log_b[None], 1)
        g = -give * blur * torch.logsumexp((f[:, None] - cost) / blur + log_a[:, None], 0)
    plan = torch.exp((f[:, None] + g[None] - cost) / blur + log_a[:, None] + log_b[None])
    return (plan * cost).sum()


def make_model():
    return Drift()


def make_batch():
    return torch.randn(128, 48), torch.randn(96, 48)


def loss_fn(output, batch):
    moved, growth = output
    return transport(moved.float(), batch[1], growth.float())
