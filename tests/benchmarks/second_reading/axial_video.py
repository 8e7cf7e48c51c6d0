"""A video transformer with attention over space and time in turns. Planted: the whole attention, products and all, is
kept out of autocast, while only its softmax would have to be."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            scores = (q.float() * self.scale) @ k.float().transpose(-2, -1)  # planted: G303
            mixed = scores.softmax(-1) @ v.float()
        return self.out(mixed.transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.space, self.time = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        b, t, n, width = x.shape
        x = x + self.space(self.norms[0](x).flatten(0, 1)).view(b, t, n, width)
        y = self.norms[1](x).transpose(1, 2).flatten(0, 1)
        x = x + self.time(y).view(b, n, t, width).transpose(1, 2)
        return x + self.mlp(self.norms[2](x))


class Video(nn.Module):
    def __init__(self, width=256, heads=4, depth=2, classes=400):
        super().__init__()
        self.patch = nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1, 256, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, clip):
        x = self.patch(clip).flatten(3).permute(0, 2, 3, 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((1, 2)))


def make_model():
    return Video()


def make_batch():
    return torch.rand(4, 3, 16, 128, 128), torch.randint(0, 400, (4,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
