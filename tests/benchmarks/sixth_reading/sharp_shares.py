"""Attention with alpha-entmax of 1.5 by bisection and a backward of its own. Planted: the backward divides by the sum
of the square roots of all shares of a row that is masked as a whole, and such a row has none: 0 / 0."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask):
        x = x / 2
        low = x.masked_fill(~mask, -1e4).amax(-1, keepdim=True) - 1
        high = low + 1
        for _ in range(20):
            middle = (low + high) / 2
            total = (x - middle).clamp(min=0).square().masked_fill(~mask, 0).sum(-1, keepdim=True)
            low, high = torch.where(total >= 1, middle, low), torch.where(total >= 1, high, middle)
        y = (x - low).clamp(min=0).square().masked_fill(~mask, 0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        root = y.sqrt()
        dx = grad * root
        q = dx.sum(-1, keepdim=True) / root.sum(-1, keepdim=True)  # planted: G205
        return dx - q * root, None


class SparseAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, valid):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = ((q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2)).float()
        mask = (valid[:, None, None, :] & valid[:, None, :, None]).expand_as(scores)
        y = Entmax15.apply(scores, mask).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class Tagger(nn.Module):
    def __init__(self, vocab=2000, dim=128, depth=2, tags=24):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(SparseAttention(dim, 4) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.head = nn.Linear(dim, tags)

    def forward(self, ids):
        x = self.emb(ids)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + layer(norm(x), ids > 0)
        return self.head(x)


def make_model():
    return Tagger()


def make_batch():
    ids = torch.randint(1, 2000, (8, 48)) * (torch.arange(48) < torch.randint(10, 48, (8, 1)))
    return ids, torch.randint(0, 24, (8, 48))


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
