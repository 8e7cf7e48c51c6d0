"""Image retrieval with generalised mean pooling and a triplet loss. Planted: fractional power at zero: infinite
gradient."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class GeM(nn.Module):
    def __init__(self, p=3.0):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.relu(x).pow(self.p).mean(dim=(-2, -1)).pow(1.0 / self.p)  # planted: G206


class Bottleneck(nn.Module):
    def __init__(self, i, o, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.skip = nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + self.skip(x))


class Retrieval(nn.Module):
    def __init__(self, dim=128):
        super().__init__()
        self.trunk = nn.Sequential(Bottleneck(3, 64), Bottleneck(64, 128), Bottleneck(128, 256))
        self.pool = GeM()
        self.fc = nn.Linear(256, dim)

    def embed(self, x):
        return F.normalize(self.fc(self.pool(self.trunk(x))), dim=1)

    def forward(self, anchor, pos, neg):
        return self.embed(anchor), self.embed(pos), self.embed(neg)


def make_model():
    return Retrieval()


def make_batch():
    return tuple(torch.rand(8, 3, 96, 96) for _ in range(3)), None


def loss_fn(output, batch):
    a, p, n = output
    return F.relu((a - p).pow(2).sum(1) - (a - n).pow(2).sum(1) + 0.2).mean()
