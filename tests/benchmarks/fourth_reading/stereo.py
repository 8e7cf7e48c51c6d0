"""Disparities of a stereo pair from a correlation volume. Planted: the spread of the disparities squares 320
candidates in the 16 bits of the volume."""

import torch
import torch.nn.functional as F
from torch import nn


class Stereo(nn.Module):
    def __init__(self, width=32, largest=320):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)
        )
        self.smooth = nn.Sequential(nn.Conv2d(largest, 64, 1), nn.ReLU(), nn.Conv2d(64, largest, 1))
        self.largest = largest

    def forward(self, left, right):
        left, right = self.features(left), self.features(right)
        columns = torch.einsum("bchw,bchv->bhwv", left, right) / left.shape[1]
        volume = columns[..., : self.largest].permute(0, 3, 1, 2)
        score = self.smooth(volume)
        places = torch.arange(self.largest, device=score.device).to(score.dtype).view(1, -1, 1, 1)
        share = F.softmax(score, dim=1).to(score.dtype)
        mean = (share * places).sum(1)
        second = (share * (places * places)).sum(1)  # planted: G214|G201
        return mean, F.relu(second - mean * mean)


def make_model():
    return Stereo()


def make_batch():
    return {
        "left": torch.randn(1, 3, 32, 640),
        "right": torch.randn(1, 3, 32, 640),
        "truth": 320 * torch.rand(1, 16, 320),
    }


def loss_fn(output, batch):
    mean, spread = output
    return F.smooth_l1_loss(mean.float(), batch["truth"]) + 1e-3 * spread.mean()
