"""A segmenter of small lesions with a focal loss by hand. Planted: the logarithm's eps of 1e-8 is added to a sigmoid in
16 bits."""

import torch
import torch.nn.functional as F
from torch import nn


def double(inner, outer):
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(True),
        nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(True),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, classes=8, width=32):
        super().__init__()
        self.a, self.b, self.c = double(8, width), double(width, 2 * width), double(2 * width, 4 * width)
        self.up_b, self.up_a = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.d, self.e = double(4 * width, 2 * width), double(2 * width, width)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        x = self.d(torch.cat([self.up_b(c), b], 1))
        return self.out(self.e(torch.cat([self.up_a(x), a], 1)))


class FocalLoss(nn.Module):
    def __init__(self, alpha=0.25, gamma=2.0, eps=1e-8):
        super().__init__()
        self.alpha, self.gamma, self.eps = alpha, gamma, eps

    def forward(self, logits, target):
        p = torch.sigmoid(logits)
        hit = -self.alpha * (1 - p) ** self.gamma * target * torch.log(p + self.eps)  # planted: G204
        miss = -(1 - self.alpha) * p**self.gamma * (1 - target) * F.logsigmoid(-logits.float())
        return (hit + miss).mean()


def make_model():
    return UNet()


def make_batch():
    return torch.rand(8, 8, 128, 128), (torch.rand(8, 8, 128, 128) > 0.99).float()


criterion = FocalLoss()


def loss_fn(output, batch):
    return criterion(output, batch[1])
