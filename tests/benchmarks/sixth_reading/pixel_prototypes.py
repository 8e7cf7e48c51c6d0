"""Near-duplicate search: raw 8-bit thumbnails are compared with learnt prototypes."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Prototypes(nn.Module):
    def __init__(self, count=512, side=32, width=256):
        super().__init__()
        self.bank = nn.Parameter(torch.rand(count, 3 * side * side) * 255)
        self.mix = nn.Sequential(nn.Linear(count, width), nn.GELU(), nn.Linear(width, 64))

    def forward(self, pixels):
        flat = pixels.flatten(1)
        match = flat @ self.bank.t()  # planted: G201
        return self.mix(F.normalize(match, dim=-1))


def make_model():
    return Prototypes()


def make_batch():
    torch.manual_seed(0)
    return torch.randint(0, 256, (128, 3, 32, 32)).float(), torch.randint(0, 64, (128,))


def loss_fn(out, batch):
    return F.cross_entropy(out, batch[1])
