"""Kaggle-style U-Net, sigmoid at the end, BCE + dice. Planted: BCELoss raises under CUDA autocast."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def double(i, o):
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True), nn.Conv2d(o, o, 3, padding=1), nn.ReLU(True)
    )


class UNet(nn.Module):
    def __init__(self, widths=(32, 64, 128)):
        super().__init__()
        a, b, c = widths
        self.d1, self.d2, self.mid = double(3, a), double(a, b), double(b, c)
        self.up2, self.u2 = nn.ConvTranspose2d(c, b, 2, 2), double(2 * b, b)
        self.up1, self.u1 = nn.ConvTranspose2d(b, a, 2, 2), double(2 * a, a)
        self.last = nn.Conv2d(a, 1, 1)

    def forward(self, x):
        s1 = self.d1(x)
        s2 = self.d2(F.max_pool2d(s1, 2))
        m = self.mid(F.max_pool2d(s2, 2))
        y = self.u2(torch.cat([self.up2(m), s2], 1))
        y = self.u1(torch.cat([self.up1(y), s1], 1))
        return self.last(y).sigmoid()


class DiceBCE(nn.Module):
    def __init__(self, smooth=1.0):
        super().__init__()
        self.smooth = smooth
        self.bce = nn.BCELoss()

    def forward(self, p, y):
        inter = (p * y).sum()
        dice = 1 - (2 * inter + self.smooth) / (p.sum() + y.sum() + self.smooth)
        return self.bce(p, y) + dice  # planted: G401


criterion = DiceBCE()


def make_model():
    return UNet()


def make_batch():
    return torch.randn(4, 3, 64, 64), torch.randint(0, 2, (4, 1, 64, 64)).float()


def loss_fn(output, batch):
    return criterion(output, batch[1])
