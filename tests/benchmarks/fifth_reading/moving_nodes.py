"""E(n)-equivariant GNN: coordinates move along normalised differences. Planted: division by a distance that is zero
for an edge to itself."""

import torch
import torch.nn as nn


class EGCL(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * dim + 1, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.node = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.coord = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1, bias=False))

    def forward(self, h, x, row, col):
        diff = x[row] - x[col]
        radial = (diff**2).sum(-1, keepdim=True)
        m = self.edge(torch.cat([h[row], h[col], radial], -1))
        direction = diff / radial.sqrt()  # planted: G205|G206
        move = torch.zeros_like(x).index_add(0, row, (direction * self.coord(m)).to(x.dtype))
        agg = torch.zeros_like(h).index_add(0, row, m.to(h.dtype))
        return h + self.node(torch.cat([h, agg], -1)), x + move / 8


class EGNN(nn.Module):
    def __init__(self, dim=64, depth=3):
        super().__init__()
        self.embed = nn.Linear(16, dim)
        self.layers = nn.ModuleList(EGCL(dim) for _ in range(depth))
        self.out = nn.Linear(dim, 1)

    def forward(self, feats, x, edges):
        h = self.embed(feats)
        for layer in self.layers:
            h, x = layer(h, x, edges[0], edges[1])
        return self.out(h).squeeze(-1)


def make_model():
    return EGNN()


def make_batch():
    return (torch.randn(200, 16), torch.randn(200, 3), torch.randint(0, 200, (2, 1600))), torch.randn(200)


def loss_fn(output, batch):
    return nn.functional.l1_loss(output, batch[1])
