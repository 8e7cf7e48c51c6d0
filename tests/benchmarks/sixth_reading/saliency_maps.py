"""Saliency maps: a small U-shaped net that ends in a sigmoid, with the loss on probabilities."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Saliency(nn.Module):
    def __init__(self, w=64):
        super().__init__()
        self.a, self.b, self.c = block(3, w), block(w, 2 * w), block(3 * w, w)
        self.out = nn.Conv2d(w, 1, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(torch.cat([a, F.interpolate(b, scale_factor=2.0, mode="bilinear")], 1))
        return torch.sigmoid(self.out(c))


def make_model():
    return Saliency()


def make_batch():
    torch.manual_seed(0)
    return torch.randn(16, 3, 128, 128), torch.rand(16, 1, 128, 128)


def loss_fn(out, batch):
    return F.binary_cross_entropy(out, batch[1])  # planted: G401
