"""A forecaster of electric loads, normalised by window. Planted: the variance is the mean of squares less the square
of the mean, for loads near 20000 that move by a few: what is left of FP32's digits may be negative under the root."""

import torch
import torch.nn.functional as F
from torch import nn


class Windowed(nn.Module):
    def __init__(self, series):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(series)), nn.Parameter(torch.zeros(series))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        spread = torch.sqrt((x * x).mean(1, keepdim=True) - mean * mean + 1e-5)  # planted: G218|G206
        return (x - mean) / spread * self.gain + self.bias, mean, spread

    def back(self, x, mean, spread):
        return (x - self.bias) / self.gain * spread + mean


class Patches(nn.Module):
    def __init__(self, series=32, length=512, ahead=96, patch=16, width=128):
        super().__init__()
        self.patch, self.norm = patch, Windowed(series)
        self.lift = nn.Linear(patch, width)
        self.places = nn.Parameter(torch.zeros(length // patch, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(width * length // patch, ahead)

    def forward(self, x):
        x, mean, spread = self.norm(x)
        x = x.transpose(1, 2).unfold(2, self.patch, self.patch)
        h = self.body((self.lift(x) + self.places).flatten(0, 1))
        y = self.head(h.flatten(1)).view(x.shape[0], x.shape[1], -1).transpose(1, 2)
        return self.norm.back(y, mean, spread)


def make_model():
    return Patches()


def make_batch():
    return 20000 + 5 * torch.randn(16, 512, 32), 20000 + 5 * torch.randn(16, 96, 32)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
