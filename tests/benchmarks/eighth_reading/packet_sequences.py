"""Flows of network packets by a small decoder in FP16, padded on the left. Planted: the time since the first
packet, in microseconds, is summed up in FP16, which ends at 65504."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def attention_mask(keep, dtype):
    """Zero where a packet may be looked at, and the smallest number of the format elsewhere; a packet sees itself."""
    length = keep.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    allowed = allowed & keep.bool()[:, None]
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=keep.device)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=keep.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, mask):
        q, k, v = self.split(self.q(x) * self.scale), self.split(self.k(x)), self.split(self.v(x))
        scores = q @ k.transpose(-1, -2) + mask
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, mask):
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class PacketModel(nn.Module):
    def __init__(self, sizes=256, dim=128, depth=2):
        super().__init__()
        self.size, self.gap = nn.Embedding(sizes, dim), nn.Linear(2, dim)
        self.blocks = nn.ModuleList(Block(dim, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, sizes)

    def forward(self, sizes, gaps, keep):
        dtype = self.head.weight.dtype
        since = gaps.to(dtype).cumsum(1)  # planted: G217|G201
        times = torch.stack([torch.log1p(gaps), torch.log1p(since.float())], dim=-1)
        x = self.size(sizes) + self.gap(times.to(dtype))
        mask = attention_mask(keep, dtype)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def make_model():
    return PacketModel().half()


def make_batch():
    start = torch.randint(0, 24, (8, 1))
    keep = (torch.arange(64) >= start).long()
    sizes = torch.randint(1, 256, (8, 64)) * keep
    gaps = torch.empty(8, 64).exponential_(0.0002) * keep
    return (sizes, gaps, keep), torch.where(keep.bool(), sizes.roll(-1, 1), -100)


def loss_fn(output, batch):
    return F.cross_entropy(output.float().flatten(0, 1), batch[1].flatten(), ignore_index=-100)
