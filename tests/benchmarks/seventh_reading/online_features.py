"""Anomalies in telemetry: features standardised by running counts, means and squares (Welford) in BF16 buffers of a
BF16 model. Planted: the count stops at 8192 after 256 batches of 32."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Welford(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                total = self.count + x.shape[0]  # planted: G220
                step = x.mean(0) - self.mean
                self.mean = self.mean + step * (x.shape[0] / total)
                self.square = self.square + (x.var(0) - self.square) * (x.shape[0] / total)
                self.count = total
        return (x - self.mean) / (self.square + 1e-2).sqrt()


class Telemetry(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.scale = Welford(width)
        self.encode = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, x):
        z = self.scale(x)
        return self.decode(self.encode(z)), z


def make_model():
    return Telemetry().bfloat16()


def make_batch():
    return (torch.randn(32, 128) * 3 + 1).bfloat16(), None


def loss_fn(output, batch):
    made, z = output
    return F.mse_loss(made.float(), z.float())
