"""MLP-Mixer S/16, 128 images of 224 x 224."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, WIDTH, DEPTH = 128, 224, 512, 8
TOKENS_WIDE, CHANNELS_WIDE = 256, 2048


def mlp(width, hidden):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    def __init__(self, patches):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens, self.channels = mlp(patches, TOKENS_WIDE), mlp(WIDTH, CHANNELS_WIDE)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 16, stride=16)
        self.blocks = nn.Sequential(*(Block((SIDE // 16) ** 2) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1000)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def make_model():
    return Mixer()


def make_batch():
    return torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
