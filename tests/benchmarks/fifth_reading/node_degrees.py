"""Spectral graph pooling (MinCut): degrees of isolated nodes under an inverse root. Planted: inverse root of a degree
that is zero for an isolated node."""

import torch
import torch.nn as nn


def normalise(adj):
    deg = adj.sum(-1)
    inv = deg.pow(-0.5)  # planted: G206
    return inv.unsqueeze(-1) * adj * inv.unsqueeze(-2)


class MinCut(nn.Module):
    def __init__(self, d=32, k=8, classes=4):
        super().__init__()
        self.g1, self.pool, self.g2 = nn.Linear(d, 64), nn.Linear(64, k), nn.Linear(64, 64)
        self.out = nn.Linear(64, classes)

    def forward(self, x, adj):
        a = normalise(adj)
        h = torch.relu(a @ self.g1(x))
        s = torch.softmax(self.pool(h), -1)
        h = s.transpose(1, 2) @ h
        return self.out(torch.relu(self.g2(h)).mean(1))


def make_model():
    return MinCut()


def make_batch():
    adj = (torch.rand(8, 40, 40) > 0.9).float()
    adj = torch.maximum(adj, adj.transpose(1, 2))
    adj[:, 5] = 0
    adj[:, :, 5] = 0
    return (torch.randn(8, 40, 32), adj), torch.randint(0, 4, (8,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
