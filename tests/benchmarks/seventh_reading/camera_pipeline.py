"""From a camera's raw mosaic to a finished picture: gains for each place by a network, a colour matrix, a tone curve.
Planted: the curve is a power below one of light that the black level leaves at zero: its gradient is infinite
there."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class GainNet(nn.Module):
    def __init__(self, width=64, depth=4):
        super().__init__()
        layers = [nn.Conv2d(4, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, 3, 1))

    def forward(self, packed):
        return 2 * torch.sigmoid(self.net(packed))


class Develop(nn.Module):
    def __init__(self):
        super().__init__()
        self.gains = GainNet()
        self.white = nn.Parameter(torch.tensor([2.0, 1.0, 1.6]))
        self.gamma = 2.2

    def forward(self, mosaic):
        packed = F.pixel_unshuffle(mosaic, 2)
        red, green, green2, blue = packed.unbind(1)
        light = torch.stack([red, (green + green2) / 2, blue], 1)
        light = light * self.white[:, None, None] * self.gains(packed).float()
        return light ** (1 / self.gamma)  # planted: G206


def make_model():
    return Develop()


def make_batch():
    mosaic = (torch.rand(4, 1, 128, 128) - 0.0625).clamp(min=0) / 0.9375
    return mosaic, torch.rand(4, 3, 64, 64)


def loss_fn(output, batch):
    l1 = F.l1_loss(output, batch[1])
    dx = output.diff(dim=-1) - batch[1].diff(dim=-1)
    return l1 + 0.2 * dx.abs().mean()
