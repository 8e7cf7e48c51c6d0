"""Weather on a grid, careful: normalised fields, a ConvNet, a likelihood in FP32 with a floor under its width."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Weather(nn.Module):
    def __init__(self, c=64, w=128):
        super().__init__()
        self.stem = nn.Conv2d(c, w, 3, padding=1, padding_mode="circular")
        self.body = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, w), nn.GELU(), nn.Conv2d(w, w, 3, padding=1)) for _ in range(6)
        )
        self.mean, self.spread = nn.Conv2d(w, c, 1), nn.Conv2d(w, c, 1)

    def forward(self, x):
        h = self.stem(x)
        for b in self.body:
            h = h + b(h)
        return x + self.mean(h), F.softplus(self.spread(h)) + 1e-3


def make_model():
    return Weather()


def make_batch():
    torch.manual_seed(0)
    return torch.randn(8, 64, 64, 128), torch.randn(8, 64, 64, 128)


def loss_fn(out, batch):
    mu, sigma = (o.float() for o in out)
    z = (batch[1] - mu) / sigma
    return (0.5 * z.square() + sigma.log()).mean()
