"""A graph attention network with a softmax over each node's edges by scatter. Planted: the exponential is taken of
the scores as they are, without their largest."""

import torch
import torch.nn.functional as F
from torch import nn


class EdgeAttention(nn.Module):
    def __init__(self, inner, outer, heads=4):
        super().__init__()
        self.heads = heads
        self.lift = nn.Linear(inner, outer, bias=False)
        self.out_of, self.into = (nn.Parameter(torch.randn(heads, outer // heads) * 0.1) for _ in range(2))

    def forward(self, x, edges):
        source, target = edges
        h = self.lift(x).view(len(x), self.heads, -1)
        score = (h * self.out_of).sum(-1)[source] + (h * self.into).sum(-1)[target]
        weight = torch.exp(F.leaky_relu(score, 0.2))  # planted: G203
        total = torch.zeros(len(x), self.heads, device=x.device, dtype=weight.dtype).index_add_(0, target, weight)
        share = weight / (total[target] + 1e-16)
        mixed = torch.zeros_like(h, dtype=share.dtype)
        return mixed.index_add_(0, target, h[source] * share[..., None]).flatten(1)


class GraphNet(nn.Module):
    def __init__(self, features=256, width=256, classes=48):
        super().__init__()
        self.layers = nn.ModuleList([EdgeAttention(features, width), EdgeAttention(width, width)])
        self.head = nn.Linear(width, classes)

    def forward(self, x, edges):
        for layer in self.layers:
            x = F.elu(layer(x, edges))
        return self.head(x)


def make_model():
    return GraphNet()


def make_batch():
    edges = torch.cat([torch.randint(0, 4096, (2, 32768)), torch.arange(4096).expand(2, -1)], 1)
    return (torch.randn(4096, 256), edges), torch.randint(0, 48, (4096,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
