"""Gaps of sea surface temperatures filled: fields in kelvin, normalised by their own moments over what clouds
leave open. Planted: the variance is a difference of moments of some 300 kelvin, which rounding takes below zero
in calm water."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def masked_moments(x, mask):
    n = mask.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (x * mask).sum((2, 3), keepdim=True) / n
    second = (x.square() * mask).sum((2, 3), keepdim=True) / n
    std = (second - mean.square()).sqrt()  # planted: G218|G206
    return mean, std


class PartialConv(nn.Module):
    """A convolution of what is seen alone, scaled by how much that is."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(cout))
        self.stride = stride

    def forward(self, x, mask):
        ones = mask.new_ones(1, 1, 3, 3)
        seen = F.conv2d(mask, ones, stride=self.stride, padding=1)
        y = self.conv(x * mask) * (9.0 / seen.clamp(min=1.0)) + self.bias[:, None, None]
        now = (seen > 0).to(x.dtype)
        return y * now, now


class GapFiller(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.down1, self.down2 = PartialConv(1, width), PartialConv(width, 2 * width, stride=2)
        self.mid = PartialConv(2 * width, 2 * width)
        self.up, self.out = PartialConv(3 * width, width), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, kelvin, mask):
        mean, std = masked_moments(kelvin, mask)
        x = (kelvin - mean) / (std + 1e-3)
        a, ma = self.down1(x, mask)
        b, mb = self.down2(F.relu(a), ma)
        c, mc = self.mid(F.relu(b), mb)
        c = F.interpolate(F.relu(c), scale_factor=2, mode="nearest")
        mc = F.interpolate(mc, scale_factor=2, mode="nearest")
        d, _ = self.up(torch.cat([c, F.relu(a)], 1), torch.maximum(mc, ma))
        return self.out(F.relu(d)) * (std + 1e-3) + mean


def make_model():
    return GapFiller()


def make_batch():
    base = 274.0 + 28.0 * torch.rand(16, 1, 1, 1)
    calm = 0.02 * torch.rand(16, 1, 1, 1)
    field = F.interpolate(torch.randn(16, 1, 8, 8), size=(48, 48), mode="bicubic", align_corners=False)
    kelvin = base + calm * field
    mask = (F.interpolate(torch.rand(16, 1, 6, 6), size=(48, 48)) > 0.4).float()
    return (kelvin * mask, mask), kelvin


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
