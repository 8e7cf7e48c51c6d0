"""A decoder with sliding windows and linear biases, attention written out. Careful: -inf outside of the window, but
each place sees itself, biases are FP32 and so is the softmax, scores are scaled before the product."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def slopes(heads):
    return torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)])


class Sliding(nn.Module):
    def __init__(self, dim, heads, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("slopes", slopes(heads))

    def bias(self, n, device):
        place = torch.arange(n, device=device)
        back = place[:, None] - place[None, :]
        outside = (back < 0) | (back >= self.window)
        bias = -self.slopes[:, None, None] * back.float()
        return bias.masked_fill(outside, float("-inf"))

    def forward(self, x):
        b, n, d = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2) / math.sqrt(d // self.heads)
        k, v = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, k.transpose(-1, -2)) + self.bias(n, x.device)
        weight = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        return self.out(torch.matmul(weight, v).transpose(1, 2).reshape(b, n, d))


class GatedMlp(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(dim, inner, bias=False),
            nn.Linear(dim, inner, bias=False),
            nn.Linear(inner, dim, bias=False),
        )

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, dim, heads, window):
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.att, self.mlp = Sliding(dim, heads, window), GatedMlp(dim, 3 * dim)

    def forward(self, x):
        x = x + self.att(self.n1(x))
        return x + self.mlp(self.n2(x))


class Decoder(nn.Module):
    def __init__(self, vocab=4096, dim=256, heads=8, depth=3, window=64):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, window) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make_model():
    return Decoder()


def make_batch():
    ids = torch.randint(0, 4096, (4, 257))
    return ids[:, :-1], ids[:, 1:]


def loss_fn(output, batch):
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), batch[1].reshape(-1))
