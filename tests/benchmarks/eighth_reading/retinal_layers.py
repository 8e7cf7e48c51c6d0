"""Layers of the retina in tomograms, with a generalised Dice loss. Planted: a layer that a picture lacks has no
volume, and its weight is the inverse of its square."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class DilatedBlock(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width)
        self.mix = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return x + F.hardswish(self.norm(self.mix(self.conv(x))))


class LayerNet(nn.Module):
    def __init__(self, layers=8, width=32):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 7, padding=3)
        self.body = nn.Sequential(*[DilatedBlock(width, 2**i) for i in range(4)])
        self.head = nn.Conv2d(width, layers, 1)

    def forward(self, scan):
        scan = (scan - scan.mean((2, 3), keepdim=True)) / (scan.std((2, 3), keepdim=True) + 1e-5)
        return self.head(self.body(self.stem(scan)))


def generalised_dice(logits, truth):
    share = logits.softmax(1)
    volume = truth.sum((2, 3))
    weight = 1.0 / volume**2  # planted: G205
    both = (weight * (share * truth).sum((2, 3))).sum(1)
    either = (weight * (share + truth).sum((2, 3))).sum(1)
    return (1 - 2 * both / either).mean()


def boundary_order(logits):
    """How much the mean depth of a layer is above that of the one before it."""
    share = logits.softmax(1)
    rows = torch.linspace(0, 1, logits.shape[2], device=logits.device)[:, None]
    depth = (share * rows).sum(2) / share.sum(2).clamp(min=1e-4)
    return F.relu(depth[:, :-1] - depth[:, 1:]).mean()


def make_model():
    return LayerNet()


def make_batch():
    edges = (torch.rand(4, 7, 1) * 0.1 + torch.arange(1, 8)[:, None] * 0.12) * 64
    label = (torch.arange(64)[None, None, :] >= edges).sum(1)
    label[1] = label[1].clamp(max=5)  # the deepest layers are out of the picture
    truth = F.one_hot(label, 8).permute(0, 2, 1).float()[..., None].expand(-1, -1, -1, 48).contiguous()
    scan = (truth * torch.rand(4, 8, 1, 1)).sum(1, keepdim=True) + 0.1 * torch.randn(4, 1, 64, 48)
    return scan, truth


def loss_fn(output, batch):
    truth = batch[1]
    return F.cross_entropy(output, truth) + generalised_dice(output, truth) + 0.1 * boundary_order(output)
