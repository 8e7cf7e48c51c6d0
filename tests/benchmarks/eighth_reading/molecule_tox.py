"""Toxicity of molecules by graph convolution: a batch of graphs side by side, symmetric normalisation by degrees,
tests that are missing left out of the loss. Careful: degrees of lone atoms come to infinity and are filled with
zero, softmax of nodes is shifted for each graph, missing labels are replaced before the loss."""

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F


def symmetric_weights(edges, nodes):
    source, target = edges
    ones = torch.ones(edges.shape[1], device=edges.device)
    degree = torch.zeros(nodes, device=edges.device).scatter_add_(0, target, ones)
    inverse_root = degree.pow(-0.5)
    inverse_root.masked_fill_(inverse_root == float("inf"), 0.0)
    return inverse_root[source] * inverse_root[target]


def graph_softmax(score, graph, graphs):
    top = score.new_full((graphs,), float("-inf")).scatter_reduce(0, graph, score, "amax", include_self=True)
    e = torch.exp(score - top[graph].detach())
    total = torch.zeros(graphs, device=score.device).index_add(0, graph, e)
    return e / (total[graph] + 1e-16)


class GraphConv(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.own, self.other = nn.Linear(cin, cout), nn.Linear(cin, cout, bias=False)
        self.norm = nn.BatchNorm1d(cout)

    def forward(self, x, edges, weight):
        source, target = edges
        sent = self.other(x)[source] * weight[:, None]
        gathered = torch.zeros(x.shape[0], sent.shape[1], device=x.device).index_add_(0, target, sent)
        return F.relu(self.norm(self.own(x) + gathered))


class ToxNet(nn.Module):
    def __init__(self, features=32, dim=96, depth=3, assays=12, graphs=32):
        super().__init__()
        sizes = [features] + [dim] * depth
        self.layers = nn.ModuleList(GraphConv(a, b) for a, b in pairwise(sizes))
        self.gate, self.head, self.graphs = nn.Linear(dim, 1), nn.Linear(dim, assays), graphs

    def forward(self, x, edges, graph):
        weight = symmetric_weights(edges, x.shape[0])
        for layer in self.layers:
            x = layer(x, edges, weight)
        share = graph_softmax(self.gate(x).squeeze(-1), graph, self.graphs)
        pooled = torch.zeros(self.graphs, x.shape[1], device=x.device).index_add(0, graph, share[:, None] * x)
        return self.head(pooled)


def make_model():
    return ToxNet()


def make_batch():
    nodes, graphs = 32 * 18, 32
    graph = torch.arange(nodes) // 18
    inside = torch.randint(0, 16, (2, nodes * 2))  # the last two atoms of each graph are alone
    edges = inside + 18 * torch.randint(0, graphs, (1, nodes * 2))
    labels = torch.bernoulli(torch.full((graphs, 12), 0.2))
    labels[torch.rand(graphs, 12) < 0.3] = float("nan")
    return (torch.randn(nodes, 32), edges, graph), labels


def loss_fn(output, batch):
    known = ~torch.isnan(batch[1])
    target = torch.where(known, batch[1], torch.zeros_like(batch[1]))
    each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
