"""Defects on steel with a focal loss whose gamma is one half. Planted: (1 - p) ** 0.5 has an infinite gradient at p =
1, which a sigmoid reaches in FP32 from 17 on: inf * 0 is NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Steel(nn.Module):
    def __init__(self, ch=32, kinds=4):
        super().__init__()
        self.a = nn.Conv2d(1, ch, 5, 2, 2)
        self.b = nn.Conv2d(ch, 2 * ch, 3, 2, 1)
        self.c = nn.Conv2d(2 * ch, 2 * ch, 3, padding=2, dilation=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (ch, 2 * ch, 2 * ch))
        self.out = nn.ConvTranspose2d(2 * ch, kinds, 4, 4)

    def forward(self, x):
        for conv, norm in zip((self.a, self.b, self.c), self.norms, strict=False):
            x = F.leaky_relu(norm(conv(x)), 0.1)
        return self.out(x)


def focal(logits, target, gamma=0.5, alpha=0.25):
    logits = logits.float()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    p_true = p * target + (1 - p) * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * (1 - p_true) ** gamma * ce).mean()  # planted: G206


def make_model():
    return Steel()


def make_batch():
    return torch.randn(4, 1, 128, 256), (torch.rand(4, 4, 128, 256) > 0.95).float()


def loss_fn(output, batch):
    return focal(output, batch[1])
