"""Adapters of low rank whose ranks are chosen by a penalty on the norm of each: an autograd function of its own
keeps one number for each rank. Planted: adapters start at zero, and the function's backward divides by their
norm."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class GroupNorms(torch.autograd.Function):
    """The length of each row."""

    @staticmethod
    def forward(ctx, rows):
        length = torch.linalg.vector_norm(rows, dim=-1)
        ctx.save_for_backward(rows, length)
        return length

    @staticmethod
    def backward(ctx, grad):
        rows, length = ctx.saved_tensors
        return grad.unsqueeze(-1) * rows / length.unsqueeze(-1)  # planted: G205


class Adapted(nn.Module):
    def __init__(self, base, rank=8, alpha=16.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(rank, base.out_features))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + (x @ self.down.T @ self.up) * self.scale

    def penalty(self):
        return GroupNorms.apply(self.up).sum()


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = Adapted(nn.Linear(dim, 3 * dim)), Adapted(nn.Linear(dim, dim))
        self.fc1, self.fc2 = Adapted(nn.Linear(dim, 4 * dim)), Adapted(nn.Linear(4 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Tuned(nn.Module):
    def __init__(self, vocab=1000, dim=128, depth=2, classes=3):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim).requires_grad_(False)
        self.blocks = nn.Sequential(*[Block(dim, 4) for _ in range(depth)])
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens):
        h = self.blocks(self.embed(tokens)).mean(1)
        chosen = [each.penalty() for each in self.modules() if isinstance(each, Adapted)]
        return self.head(h), torch.stack(chosen).sum()


def make_model():
    return Tuned()


def make_batch():
    return torch.randint(0, 1000, (16, 48)), torch.randint(0, 3, (16,))


def loss_fn(output, batch):
    logits, ranks = output
    return F.cross_entropy(logits, batch[1]) + 1e-3 * ranks
