"""Cells in microscopy by a U-Net of 36 base channels, to fit a small card. Planted: 36 channels at the widest level,
which is no multiple of 8, so that cuDNN pads copies of the largest tensors in 16 bits."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Double(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.first = nn.Conv2d(cin, cout, 3, padding=1)
        self.second = nn.Conv2d(cout, cout, 3, padding=1)
        self.n1, self.n2 = nn.InstanceNorm2d(cout, affine=True), nn.InstanceNorm2d(cout, affine=True)

    def forward(self, x):
        x = F.leaky_relu(self.n1(self.first(x)))
        return F.leaky_relu(self.n2(self.second(x)))  # planted: G104


class UNet(nn.Module):
    def __init__(self, base=36, classes=3):
        super().__init__()
        self.d1, self.d2, self.d3 = Double(1, base), Double(base, 2 * base), Double(2 * base, 4 * base)
        self.u2, self.u1 = Double(6 * base, 2 * base), Double(3 * base, base)
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        b = self.u2(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        a = self.u1(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))
        return self.head(a)


def make_model():
    return UNet()


def make_batch():
    return torch.randn(8, 1, 256, 256), torch.randint(0, 3, (8, 256, 256))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
