"""Attention within blocks of a long text. Planted: the mask holds the smallest number of FP32 and is cast to the
scores' 16 bits, where it is infinite, and blocks of padding alone end in NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class BlockAttention(nn.Module):
    def __init__(self, d, heads, block):
        super().__init__()
        self.heads, self.block = heads, block
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, padding):
        b, t, d = x.shape
        n = t // self.block
        q, k, v = (each.view(b, n, self.block, self.heads, -1).transpose(2, 3) for each in self.qkv(x).chunk(3, dim=-1))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        future = torch.ones(self.block, self.block, dtype=torch.bool, device=x.device).triu(1)
        hidden = (padding.view(b, n, 1, 1, self.block) | future).float() * torch.finfo(torch.float32).min
        scores = scores + hidden.to(scores.dtype)  # planted: G201
        mixed = F.softmax(scores, dim=-1).to(v.dtype) @ v
        return self.out(mixed.transpose(2, 3).reshape(b, t, d))


class Reader(nn.Module):
    def __init__(self, words=4096, d=128, heads=4, block=64, depth=2):
        super().__init__()
        self.embed = nn.Embedding(words, d, padding_idx=0)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.layers = nn.ModuleList(BlockAttention(d, heads, block) for _ in range(depth))
        self.head = nn.Linear(d, words)

    def forward(self, text):
        x, padding = self.embed(text), text == 0
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x), padding)
        return self.head(x)


def make_model():
    return Reader()


def make_batch():
    text = torch.randint(1, 4096, (8, 512))
    text[4:, 300:] = 0
    return {"text": text}


def loss_fn(output, batch):
    return F.cross_entropy(output[:, :-1].flatten(0, 1), batch["text"][:, 1:].flatten(), ignore_index=0)
