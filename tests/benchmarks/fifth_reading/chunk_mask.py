"""Conformer-like encoder: additive relative mask built once as a buffer, registered in half. Planted: -1e30 is -inf
in FP16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ChunkMask(nn.Module):
    def __init__(self, n, chunk):
        super().__init__()
        i = torch.arange(n) // chunk
        allowed = i[None, :] <= i[:, None]
        self.register_buffer("mask", (1.0 - allowed.float()) * -1e30, persistent=False)

    def forward(self, scores):
        return scores + self.mask.to(scores.dtype)  # planted: G201


class Conformer(nn.Module):
    def __init__(self, dim=144, heads=4, n=128, vocab=64):
        super().__init__()
        self.heads = heads
        self.inp = nn.Linear(80, dim)
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mask = ChunkMask(n, 16)
        self.dw = nn.Conv1d(dim, dim, 15, padding=7, groups=dim)
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.out = nn.Linear(dim, vocab)

    def forward(self, mel):
        x = self.inp(mel)
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        s = self.mask(torch.einsum("bhqd,bhkd->bhqk", q / (d // self.heads) ** 0.5, k))
        x = x + self.o(torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1).to(v.dtype), v).transpose(1, 2).reshape(b, n, d))
        x = x + F.silu(self.dw(self.n2(x).transpose(1, 2))).transpose(1, 2)
        return self.out(x)


def make_model():
    return Conformer()


def make_batch():
    return torch.randn(4, 128, 80), torch.randint(0, 64, (4, 128))


def loss_fn(output, batch):
    return F.cross_entropy(output.transpose(1, 2), batch[1])
