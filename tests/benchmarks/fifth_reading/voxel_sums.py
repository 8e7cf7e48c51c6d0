"""Volumetric segmentation in a half model: voxel sums accumulate in FP16. Planted: a sum of 524288 probabilities in
FP16: beyond 65504."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class VNet(nn.Module):
    def __init__(self, ch=16):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, ch, 3, padding=1), nn.Conv3d(ch, ch, 3, padding=1)
        self.out = nn.Conv3d(ch, 1, 1)

    def forward(self, x):
        h = F.relu(self.b(F.relu(self.a(x))))
        return torch.sigmoid(self.out(h))


class Tversky(nn.Module):
    def __init__(self, a=0.7, b=0.3):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, p, y):
        p, y = p.flatten(), y.flatten().to(p.dtype)
        tp = torch.sum(p * y)  # planted: G207
        fp, fn = torch.sum(p * (1 - y)), torch.sum((1 - p) * y)
        return 1 - (tp + 1) / (tp + self.a * fn + self.b * fp + 1)


loss = Tversky()


def make_model():
    return VNet().half()


def make_batch():
    return torch.randn(2, 1, 64, 64, 64).half(), torch.randint(0, 2, (2, 1, 64, 64, 64))


def loss_fn(output, batch):
    return loss(output, batch[1])
