"""A transformer whose feed-forward is an autograd function that computes the hidden layer again in the backward.
Planted: the function has no custom_fwd, so that its backward, outside of autocast, multiplies a 16-bit gradient by a
weight in FP32."""

import torch
import torch.nn.functional as F
from torch import nn


class Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down):
        ctx.save_for_backward(x, up, down)
        return F.linear(F.relu(F.linear(x, up)), down)

    @staticmethod
    def backward(ctx, grad):
        x, up, down = ctx.saved_tensors
        h = F.linear(x, up)
        inner = (grad @ down) * (h > 0)
        rows = inner.flatten(0, -2)
        return inner @ up, rows.t() @ x.flatten(0, -2), grad.flatten(0, -2).t() @ F.relu(h).flatten(0, -2)


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.empty(inner, width)), nn.Parameter(torch.empty(width, inner))
        nn.init.xavier_uniform_(self.up)
        nn.init.xavier_uniform_(self.down)

    def forward(self, x):
        return Recomputed.apply(x, self.up, self.down)  # planted: G301


class Reader(nn.Module):
    def __init__(self, vocabulary=8192, width=256, depth=3):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth))
        self.forwards = nn.ModuleList(FeedForward(width, 4 * width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.head = nn.Linear(width, 32)

    def forward(self, ids):
        x = self.embed(ids)
        for at, (attention, feed) in enumerate(zip(self.attention, self.forwards, strict=True)):
            h = self.norms[2 * at](x)
            x = x + attention(h, h, h, need_weights=False)[0]
            x = x + feed(self.norms[2 * at + 1](x))
        return self.head(x.mean(1))


def make_model():
    return Reader()


def make_batch():
    return torch.randint(0, 8192, (32, 128)), torch.randint(0, 32, (32,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
