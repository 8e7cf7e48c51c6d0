"""Pair representations of a protein model: triangle multiplication, triangle attention, an outer product mean over
sequences and a frame-aligned error. Planted: the outer product of 512 sequences is summed in a product before it
is divided, and the error is the root of a squared distance that is zero for each residue in its own frame."""

import torch
import torch.nn.functional as F
from torch import nn


class OuterProductMean(nn.Module):
    def __init__(self, single, pair, hidden=32):
        super().__init__()
        self.norm = nn.LayerNorm(single)
        self.left, self.right = nn.Linear(single, hidden), nn.Linear(single, hidden)
        self.out = nn.Linear(hidden * hidden, pair)

    def forward(self, m):
        m = self.norm(m)
        a, b = F.relu(self.left(m)), F.relu(self.right(m))
        outer = torch.einsum("bsic,bsjd->bijcd", a * 16, b * 16)  # planted: G201|G207
        return self.out(outer.flatten(-2) / (256 * m.shape[1]))


class TriangleMultiplication(nn.Module):
    def __init__(self, width, hidden=128):
        super().__init__()
        self.norm, self.out_norm = nn.LayerNorm(width), nn.LayerNorm(hidden)
        self.project, self.gates = nn.Linear(width, 2 * hidden), nn.Linear(width, 2 * hidden)
        self.out, self.gate = nn.Linear(hidden, width), nn.Linear(width, width)

    def forward(self, z):
        z = self.norm(z)
        a, b = (self.project(z) * self.gates(z).sigmoid()).chunk(2, -1)
        x = torch.einsum("bikc,bjkc->bijc", a, b)
        return self.out(self.out_norm(x)) * self.gate(z).sigmoid()


class TriangleAttention(nn.Module):
    def __init__(self, width, heads=4, head=32):
        super().__init__()
        self.heads, self.head = heads, head
        self.norm, self.bias = nn.LayerNorm(width), nn.Linear(width, heads, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * heads * head, bias=False), nn.Linear(heads * head, width)

    def forward(self, z):
        z = self.norm(z)
        b, n, _, _ = z.shape
        q, k, v = self.qkv(z).view(b, n, n, 3, self.heads, self.head).permute(3, 0, 1, 4, 2, 5)
        scores = torch.einsum("bihqd,bihkd->bihqk", q * self.head**-0.5, k)
        scores = scores + self.bias(z).permute(0, 3, 1, 2)[:, None]
        y = torch.einsum("bihqk,bihkd->bihqd", scores.softmax(-1), v)
        return self.out(y.permute(0, 1, 3, 2, 4).flatten(-2))


class Pairs(nn.Module):
    def __init__(self, single=64, pair=128, depth=2):
        super().__init__()
        self.embed, self.outer = nn.Embedding(23, single), OuterProductMean(single, pair)
        self.blocks = nn.ModuleList(
            nn.ModuleList([TriangleMultiplication(pair), TriangleAttention(pair)]) for _ in range(depth)
        )
        self.places = nn.Linear(pair, 3)

    def forward(self, msa):
        z = self.outer(self.embed(msa))
        for multiply, attend in self.blocks:
            z = z + multiply(z)
            z = z + attend(z)
        local = self.places(z)
        return local - torch.diagonal(local, dim1=1, dim2=2).transpose(1, 2)[:, :, None]


def make_model():
    return Pairs()


def make_batch():
    truth = torch.randn(1, 96, 96, 3) * 5
    truth[:, torch.arange(96), torch.arange(96)] = 0.0
    return torch.randint(0, 23, (1, 512, 96)), truth


def loss_fn(local, batch):
    error = torch.sqrt(((local.float() - batch[1]) ** 2).sum(-1))  # planted: G206
    return error.clamp(max=10.0).mean() / 10.0
