"""An image as learnt Gaussians in the plane, whose shapes a network gives. Planted: the determinant of a covariance is
a difference of products in 16 bits, and a denominator."""

import torch
import torch.nn.functional as F
from torch import nn


class Splats(nn.Module):
    def __init__(self, count=512, width=128, size=32):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(count, width))
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 8))
        axis = (torch.arange(size) + 0.5) / size
        self.register_buffer("pixels", torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2))

    def forward(self, noise):
        parts = self.net(self.codes + noise)
        place, shape, color = parts[:, :2].sigmoid(), parts[:, 2:5], parts[:, 5:]
        a, b, c = shape[:, 0].exp(), torch.tanh(shape[:, 1]), shape[:, 2].exp()
        a, b, c = (each.to(parts.dtype) for each in (a, b, c))
        inverse = 1 / (a * c - b * b)  # planted: G205|G218
        d = self.pixels[:, None] - place
        x, y = d[..., 0], d[..., 1]
        power = (c * x * x - 2 * b * x * y + a * y * y) * inverse
        weight = torch.exp(-0.5 * F.relu(power))
        return (weight @ color.sigmoid()) / (weight.sum(1, keepdim=True) + 1e-3)


def make_model():
    return Splats()


def make_batch():
    return {"noise": 0.1 * torch.randn(512, 128), "image": torch.rand(1024, 3)}


def loss_fn(output, batch):
    return F.l1_loss(output, batch["image"])
