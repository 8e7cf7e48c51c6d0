"""Land cover from raw reflectances of a satellite, each patch normalised by itself. Planted: the variance is the mean
of squares less the square of the mean, of numbers in the thousands, and its root comes without a floor: open water
gives NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class PatchStandardise(nn.Module):
    def forward(self, x):
        mean = x.mean((-2, -1), keepdim=True)
        spread = ((x * x).mean((-2, -1), keepdim=True) - mean * mean).sqrt()  # planted: G206|G218
        return (x - mean) / (spread + 1e-3)


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        gate = self.up(F.relu(self.down(x.mean((-2, -1), keepdim=True))))
        return x * torch.sigmoid(gate)


class LandCover(nn.Module):
    def __init__(self, bands=16, classes=24):
        super().__init__()
        self.standardise = PatchStandardise()
        layers, width = [], bands
        for out in (64, 128, 256):
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), SqueezeExcite(out)]
            width = out
        self.net, self.head = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.net(self.standardise(x)).mean((-2, -1)))


def make_model():
    return LandCover()


def make_batch():
    base = torch.rand(32, 16, 1, 1) * 4000 + 200
    texture = torch.randn(32, 16, 64, 64) * 150
    texture[::5] = 0  # water and clouds
    return (base + texture).round(), torch.randint(0, 24, (32,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
