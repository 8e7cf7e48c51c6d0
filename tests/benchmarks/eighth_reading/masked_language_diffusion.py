"""Text by masked diffusion: tokens are hidden at a rate of the time, and what is hidden is predicted at a weight
of the time. Planted: at time zero nothing is hidden, and the weight of the bound divides by zero."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class CosineSchedule(nn.Module):
    def __init__(self, steps):
        super().__init__()
        grid = torch.linspace(0, 1, steps + 1)
        alpha = torch.cos(grid * math.pi / 2) ** 2
        self.register_buffer("alpha", alpha)

    def forward(self, t):
        """The share that is kept at a time, and what the bound weighs the loss with."""
        kept, after = self.alpha[t], self.alpha[t + 1]
        weight = (kept - after) / (1 - kept)  # planted: G205
        return kept, weight


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


class MaskedDiffusion(nn.Module):
    def __init__(self, vocab=512, dim=128, depth=3, heads=4, length=64, steps=16):
        super().__init__()
        self.mask_token = vocab
        self.schedule = CosineSchedule(steps)
        self.embed = nn.Embedding(vocab + 1, dim)
        self.place = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.layers = nn.Sequential(*[Layer(dim, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab)

    def forward(self, tokens, t, noise):
        kept, weight = self.schedule(t)
        hidden = noise >= kept[:, None]
        corrupted = torch.where(hidden, self.mask_token, tokens)
        logits = self.head(self.norm(self.layers(self.embed(corrupted) + self.place)))
        return logits, hidden, weight


def make_model():
    return MaskedDiffusion()


def make_batch():
    tokens = torch.randint(0, 512, (32, 64))
    t = (torch.arange(32) * 16) // 32  # stratified over the times
    return (tokens, t, torch.rand(32, 64)), tokens


def loss_fn(output, batch):
    logits, hidden, weight = output
    each = F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none")
    return (weight[:, None] * each * hidden.float()).sum() / each.numel()
