"""A learnt audio front end: Gabor-like filters, Gaussian pooling and per-channel energy normalisation. Planted: the
smoothed energy of silence gets an eps of 1e-12 in the 16 bits of the convolution, where it is lost, and divides."""

import torch
import torch.nn.functional as F
from torch import nn


class PCEN(nn.Module):
    def __init__(self, channels, floor=1e-12):
        super().__init__()
        self.alpha, self.delta = (
            nn.Parameter(torch.full((channels, 1), 0.96)),
            nn.Parameter(torch.full((channels, 1), 2.0)),
        )
        self.root = nn.Parameter(torch.full((channels, 1), 2.0))
        self.smooth = nn.Conv1d(channels, channels, 33, padding=16, groups=channels, bias=False)
        nn.init.constant_(self.smooth.weight, 1 / 33)
        self.floor = floor

    def forward(self, energy):
        smoothed = self.smooth(energy)
        normed = energy / (self.floor + smoothed) ** self.alpha.clamp(max=1.0)  # planted: G205|G206
        root = 1 / self.root.clamp(min=1.0)
        return (normed + self.delta) ** root - self.delta**root


class FrontEnd(nn.Module):
    def __init__(self, filters=40, width=401, stride=160):
        super().__init__()
        self.filters = nn.Conv1d(1, 2 * filters, width, padding=width // 2, bias=False)
        self.pool = nn.Conv1d(filters, filters, width, stride, padding=width // 2, groups=filters, bias=False)
        self.norm = PCEN(filters)

    def forward(self, wave):
        real, imaginary = self.filters(wave[:, None]).chunk(2, 1)
        return self.norm(F.relu(self.pool(real * real + imaginary * imaginary)))


class Tagger(nn.Module):
    def __init__(self, filters=40, classes=512):
        super().__init__()
        self.front = FrontEnd(filters)
        self.body = nn.Sequential(
            nn.Conv1d(filters, 256, 5, padding=2), nn.BatchNorm1d(256), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(256, 512, 5, padding=2), nn.BatchNorm1d(512), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(512, classes)

    def forward(self, wave):
        return self.head(self.body(self.front(wave)))


def make_model():
    return Tagger()


def make_batch():
    wave = torch.randn(16, 16000) * 0.1
    wave[:4, 8000:] = 0.0
    return wave, (torch.rand(16, 512) > 0.98).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
