"""Depth from one image, trained with a trimmed loss: the largest tenth of the errors is left out. Planted: quantile of
the network's 16-bit errors, which torch.quantile refuses (float and double alone)."""

import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F


class Down(nn.Sequential):
    def __init__(self, cin, cout):
        super().__init__(nn.Conv2d(cin, cout, 3, 2, 1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class Depth(nn.Module):
    def __init__(self, ch=32):
        super().__init__()
        sizes = [3, ch, 2 * ch, 4 * ch]
        self.down = nn.ModuleList(Down(a, b) for a, b in itertools.pairwise(sizes))
        self.up = nn.ModuleList(nn.Conv2d(a + b, b, 3, padding=1) for a, b in ((4 * ch, 2 * ch), (2 * ch, ch)))
        self.out = nn.Conv2d(ch, 1, 3, padding=1)

    def forward(self, x):
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
        x = kept.pop()
        for up in self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.relu(up(torch.cat([x, kept.pop()], 1)))
        return self.out(x).squeeze(1)


def trimmed(made, true, keep=0.9):
    error = (made - true.to(made.dtype)).abs().flatten(1)
    limit = torch.quantile(error.detach(), keep, dim=1, keepdim=True)  # planted: G401
    kept = (error <= limit).float()
    return (error * kept).sum() / kept.sum().clamp(min=1)


def make_model():
    return Depth()


def make_batch():
    return torch.randn(8, 3, 96, 128), torch.rand(8, 48, 64)


def loss_fn(output, batch):
    return trimmed(output, batch[1])
