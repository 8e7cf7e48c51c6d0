"""Dense self-supervision: the cross-correlation of two views over all places of the feature maps. Planted: the product
over 16 x 72 x 72 standardised places is divided only afterwards; in FP16 its diagonal (82944) is infinite."""

import torch
import torch.nn as nn


def block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


class DenseTwins(nn.Module):
    def __init__(self, ch=32, dim=64):
        super().__init__()
        self.encoder = nn.Sequential(block(3, ch), nn.AvgPool2d(2), block(ch, 2 * ch), block(2 * ch, 2 * ch))
        self.project = nn.Sequential(nn.Conv2d(2 * ch, dim, 1), nn.ReLU(), nn.Conv2d(dim, dim, 1))
        self.bn = nn.BatchNorm1d(dim, affine=False)

    def embed(self, x):
        z = self.project(self.encoder(x))
        return self.bn(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]))

    def forward(self, a, b):
        za, zb = self.embed(a), self.embed(b)
        return za.t() @ zb / za.shape[0]  # planted: G201|G207


def make_model():
    return DenseTwins()


def make_batch():
    x = torch.randn(16, 3, 144, 144)
    return (x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)), None


def loss_fn(output, batch):
    c = output.float()
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
    return on + 0.005 * off
