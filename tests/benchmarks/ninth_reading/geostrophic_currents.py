"""Sea level from along-track altimetry by a convolutional net; the loss is on the level and on the currents that a
level in balance drives. Latitudes of the tiles: 3 to 60 degrees."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

GRAVITY, SPIN = 9.81, 7.2921e-5


class SeaLevel(nn.Module):
    def __init__(self, width=48, spacing=5000.0):
        super().__init__()
        self.spacing = spacing
        self.net = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4), nn.SiLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, tracks, latitude):
        level = self.net(tracks).squeeze(1)
        turn = (2.0 * SPIN * torch.sin(latitude * (math.pi / 180.0))).to(level.dtype)
        pull = GRAVITY / turn  # planted: G201
        north = (level[:, 2:, 1:-1] - level[:, :-2, 1:-1]) / (2 * self.spacing)  # planted: G202
        east = (level[:, 1:-1, 2:] - level[:, 1:-1, :-2]) / (2 * self.spacing)
        pull = pull[:, 1:-1, None]
        return level, torch.stack((-pull * north, pull * east), 1)


def make_model():
    return SeaLevel()


def make_batch():
    rows = torch.linspace(0, 1.5, 64)
    latitude = (3.0 + 55.0 * torch.rand(8, 1)) + rows
    return {
        "tracks": torch.randn(8, 4, 64, 64),
        "latitude": latitude,
        "level": 0.2 * torch.randn(8, 64, 64),
        "currents": 0.3 * torch.randn(8, 2, 62, 62),
    }


def loss_fn(output, batch):
    level, currents = output
    return F.mse_loss(level.float(), batch["level"]) + 0.1 * F.huber_loss(currents.float(), batch["currents"])
