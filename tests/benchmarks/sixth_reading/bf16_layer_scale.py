"""A vision transformer whose weights are BF16, layer scales kept in FP32. Planted: gamma * branch is FP32 by
promotion, and so is the stream from the first block on: norms, additions and what they keep for the backward take
twice the bytes."""

import torch
import torch.nn as nn
import torch.nn.functional as F

BF16 = torch.bfloat16


class Scale(nn.Module):
    def __init__(self, dim, init=1e-4):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x):
        return self.gamma * x  # planted: G306


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, dtype=BF16), nn.Linear(dim, dim, dtype=BF16)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.s1, self.s2 = Attention(dim, heads), Scale(dim), Scale(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim, dtype=BF16), nn.GELU(), nn.Linear(4 * dim, dim, dtype=BF16))

    def forward(self, x):
        x = x + self.s1(self.attn(self.n1(x.float()).to(BF16)))
        return x + self.s2(self.mlp(self.n2(x.float()).to(BF16)))


class ViT(nn.Module):
    def __init__(self, dim=384, heads=6, depth=6, classes=1000):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, 16, dtype=BF16)
        self.pos = nn.Parameter(torch.randn(1, 196, dim, dtype=BF16) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch(x.to(BF16)).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.float()).mean(1))


def make_model():
    return ViT()


def make_batch():
    return torch.randn(16, 3, 224, 224), torch.randint(0, 1000, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
