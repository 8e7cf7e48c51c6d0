"""A causal decoder with linear biases for distance (ALiBi). Planted: positions up to 4096 are made in the 16 bits of
the queries, so that neighbours in BF16 are at one place."""

import torch
import torch.nn.functional as F
from torch import nn


class Mixer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("slopes", 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads))

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(t, device=x.device, dtype=q.dtype)
        distance = place[None, :] - place[:, None]  # planted: G211
        bias = self.slopes.to(q.dtype).view(-1, 1, 1) * distance
        bias = bias.masked_fill(distance > 0, float("-inf"))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d))


class Decoder(nn.Module):
    def __init__(self, words=8192, d=128, heads=4, depth=2):
        super().__init__()
        self.embed = nn.Embedding(words, d)
        self.mixers = nn.ModuleList(Mixer(d, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.head = nn.Linear(d, words)

    def forward(self, tokens):
        x = self.embed(tokens)
        for norm, mixer, mlp in zip(self.norms, self.mixers, self.mlps, strict=True):
            x = x + mixer(norm(x))
            x = x + mlp(x)
        return self.head(x)


def make_model():
    return Decoder()


def make_batch():
    return {"tokens": torch.randint(0, 8192, (1, 4096))}


def loss_fn(output, batch):
    return F.cross_entropy(output[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())
