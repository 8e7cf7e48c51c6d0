"""Sentence encoder: padding mask from finfo, mean pooling with a floor, cosine loss with a learned, clamped scale."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class EncoderLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, pad):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2)
        scores = scores.masked_fill(pad[:, None, None], torch.finfo(scores.dtype).min)
        y = scores.softmax(-1).to(v.dtype) @ v
        x = self.n1(x + self.o(y.transpose(1, 2).reshape(b, n, d)))
        return self.n2(x + self.ff(x))


class SentenceEncoder(nn.Module):
    def __init__(self, vocab=8192, dim=128, heads=4, depth=2, length=64):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList(EncoderLayer(dim, heads) for _ in range(depth))
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def encode(self, ids):
        pad = ids == 0
        x = self.tok(ids) + self.pos(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x, pad)
        keep = (~pad).unsqueeze(-1).to(x.dtype)
        return F.normalize((x * keep).sum(1) / keep.sum(1).clamp(min=1), dim=-1)

    def forward(self, a, b):
        return self.log_scale.clamp(max=4.6).exp() * self.encode(a) @ self.encode(b).t()


def make_model():
    return SentenceEncoder()


def make_batch():
    a, b = torch.randint(1, 8192, (32, 64)), torch.randint(1, 8192, (32, 64))
    a[:, 50:] = 0
    return (a, b), torch.arange(32)


def loss_fn(output, batch):
    return 0.5 * (F.cross_entropy(output, batch[1]) + F.cross_entropy(output.t(), batch[1]))
