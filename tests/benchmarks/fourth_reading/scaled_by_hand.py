"""Depth completion, all in FP16 by hand. Planted: the loss scale of 2**16 is multiplied onto a mean in metres that is
FP16 itself."""

import torch
from torch import nn

SCALE = 2.0**16


class Depth(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(4, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 8, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(8, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, seen):
        return self.up(self.down(seen.half()))


def make_model():
    return Depth().half()


def make_batch():
    depth = 1 + 79 * torch.rand(4, 1, 64, 64)
    sparse = depth * (torch.rand_like(depth) < 0.05) / 80
    return {"seen": torch.cat([torch.rand(4, 3, 64, 64), sparse], 1), "depth": depth}


def loss_fn(made, batch):
    error = (made - batch["depth"].half()).abs().mean()
    return error * SCALE  # planted: G201|G212
