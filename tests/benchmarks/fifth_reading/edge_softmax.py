"""Graph attention without torch_geometric: edge softmax by index_add. Planted: exp overflow: unbounded edge scores,
no maximum taken off."""

import torch
import torch.nn.functional as F
from torch import nn


def edge_softmax(e, dst, n):
    z = e.exp()  # planted: G203
    total = torch.zeros(n, e.shape[1], dtype=z.dtype, device=z.device).index_add(0, dst, z)
    return z / total[dst].clamp(min=1e-6)


class GATLayer(nn.Module):
    def __init__(self, i, o, heads):
        super().__init__()
        self.heads, self.o = heads, o
        self.lin = nn.Linear(i, heads * o, bias=False)
        self.att_src = nn.Parameter(torch.randn(heads, o) * 0.1)
        self.att_dst = nn.Parameter(torch.randn(heads, o) * 0.1)

    def forward(self, x, edge_index):
        src, dst = edge_index
        h = self.lin(x).view(-1, self.heads, self.o)
        a = (h * self.att_src).sum(-1)[src] + (h * self.att_dst).sum(-1)[dst]
        w = edge_softmax(F.leaky_relu(a, 0.2), dst, x.shape[0])
        out = torch.zeros(x.shape[0], self.heads, self.o, dtype=h.dtype, device=h.device)
        return out.index_add(0, dst, (h[src] * w.unsqueeze(-1)).to(h.dtype)).flatten(1)


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = GATLayer(256, 32, 8)
        self.two = GATLayer(256, 32, 8)
        self.head = nn.Linear(256, 40)

    def forward(self, x, edge_index):
        x = F.elu(self.one(x, edge_index))
        x = F.elu(self.two(x, edge_index))
        return self.head(x)


def make_model():
    return GAT()


def make_batch():
    return (torch.randn(1000, 256), torch.randint(0, 1000, (2, 8000))), torch.randint(0, 40, (1000,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
