"""A genome classifier whose table of positions comes from numpy. Planted: numpy counts in double precision, the table
makes what follows double too, and autocast leaves doubles alone."""

import numpy as np
import torch
from torch import nn


def sinusoids(length, width):
    angle = np.arange(length)[:, None] / np.power(10000, 2 * (np.arange(width) // 2) / width)
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return torch.from_numpy(angle)


class Genome(nn.Module):
    def __init__(self, letters=5, width=256, length=512, classes=16):
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.register_buffer("positions", sinusoids(length, width), persistent=False)
        self.query, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, ids):
        x = self.embed(ids) + self.positions
        h = torch.relu(self.query(x))  # planted: G301
        return self.head(self.norm(h + self.mix(h)).mean(1))


def make_model():
    return Genome()


def make_batch():
    return torch.randint(0, 5, (32, 512)), torch.randint(0, 16, (32,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
