"""Attention within windows of 64 over clinical notes of different lengths. Planted: a window that is all padding has a
row of -inf alone, whose softmax is 0 / 0: NaN, in any format (short notes fill one window of four)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class WindowAttention(nn.Module):
    def __init__(self, dim=192, heads=6, window=64):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, valid):
        b, n, d = x.shape
        w = n // self.window
        q, k, v = self.qkv(x).reshape(b, w, self.window, 3, self.heads, d // self.heads).permute(3, 0, 1, 4, 2, 5)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        hidden = ~valid.reshape(b, w, 1, 1, self.window)
        scores = scores.masked_fill(hidden, float("-inf"))
        y = torch.softmax(scores, dim=-1) @ v  # planted: G205|G201|G209
        return self.out(y.permute(0, 1, 3, 2, 4).reshape(b, n, d))


class Layer(nn.Module):
    def __init__(self, dim=192):
        super().__init__()
        self.att, self.n1, self.n2 = WindowAttention(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, valid):
        x = x + self.att(self.n1(x), valid)
        return x + self.ff(self.n2(x))


class Notes(nn.Module):
    def __init__(self, vocab=4096, dim=192, depth=3, codes=48):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim, padding_idx=0)
        self.pos = nn.Parameter(torch.randn(256, dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(depth))
        self.head = nn.Linear(dim, codes)

    def forward(self, ids):
        valid = ids != 0
        x = self.emb(ids) + self.pos
        for layer in self.layers:
            x = layer(x, valid)
        weight = valid.float()[..., None]
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


def make_model():
    return Notes()


def make_batch():
    ids = torch.randint(1, 4096, (16, 256))
    length = torch.randint(20, 257, (16, 1))
    length[0] = 30
    return ids * (torch.arange(256) < length), torch.randint(0, 2, (16, 48)).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
