"""A picture as a network of its coordinates with random Fourier features. Planted: 2 pi x B is a product, which
autocast takes in 16 bits; angles reach 200, where BF16's next number is one radian away."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class FourierFeatures(nn.Module):
    def __init__(self, inputs=2, features=128, sigma=10.0):
        super().__init__()
        self.register_buffer("B", torch.randn(inputs, features) * sigma)

    def forward(self, x):
        angle = 2 * math.pi * x @ self.B
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)  # planted: G219|G211


class Picture(nn.Module):
    def __init__(self, width=256, depth=4):
        super().__init__()
        self.features = FourierFeatures()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.rgb = nn.Linear(width, 3)

    def forward(self, x):
        h = self.features(x)
        for layer in self.layers:
            h = F.relu(layer(h))
        return torch.sigmoid(self.rgb(h))


def make_model():
    return Picture()


def make_batch():
    at = torch.rand(16384, 2)
    return at, torch.rand(16384, 3)


def loss_fn(output, batch):
    return F.mse_loss(output.float(), batch[1])
