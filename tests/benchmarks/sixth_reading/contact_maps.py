"""Contact maps: outer products of residue embeddings, attention by hand with a mask constant."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class RowAttention(nn.Module):
    def __init__(self, width=180, heads=6):
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.o = nn.Linear(width, width)

    def forward(self, x, pad):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)  # planted: G101
        s = q @ k.transpose(-1, -2) / math.sqrt(self.dim)
        s = s.masked_fill(pad[:, None, None], -1e9)  # planted: G201
        return self.o((s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


class Contacts(nn.Module):
    def __init__(self, width=180):
        super().__init__()
        self.emb = nn.Embedding(21, width)
        self.att = nn.ModuleList(RowAttention(width) for _ in range(4))
        self.ff = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 720), nn.GELU(), nn.Linear(720, width))
            for _ in range(4)
        )
        self.pair = nn.Linear(width, 32)

    def forward(self, seq, pad):
        h = self.emb(seq)
        for a, f in zip(self.att, self.ff, strict=True):
            h = h + a(h, pad)
            h = h + f(h)
        z = self.pair(h)
        return torch.einsum("bic,bjc->bij", z, z)


def make_model():
    return Contacts()


def make_batch():
    torch.manual_seed(0)
    pad = torch.zeros(16, 256, dtype=torch.bool)
    pad[:, 240:] = True
    return {"seq": torch.randint(0, 21, (16, 256)), "pad": pad, "y": torch.rand(16, 256, 256).round()}


def run(model, batch):
    return model(batch["seq"], batch["pad"])


def loss_fn(out, batch):
    return F.binary_cross_entropy_with_logits(out, batch["y"])
