"""A mesh is fitted to silhouettes by a soft rasteriser: each triangle gives each pixel a probability. Planted: what no
triangle covers is exp(sum(log(1 - p))); inside of a triangle p is 1 and the logarithm -inf, its gradient NaN
(FP32)."""

import torch
import torch.nn as nn


def edge_function(a, b, p):
    return (b[..., 0] - a[..., 0]) * (p[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (p[..., 0] - a[..., 0])


class SoftRaster(nn.Module):
    def __init__(self, size=48, sigma=1e-3):
        super().__init__()
        self.sigma = sigma
        line = (torch.arange(size) + 0.5) / size * 2 - 1
        self.register_buffer("pixels", torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2))

    def forward(self, corners):
        a, b, c = (corners[:, :, i, None] for i in range(3))
        p = self.pixels[None, None]
        inside = torch.minimum(torch.minimum(edge_function(a, b, p), edge_function(b, c, p)), edge_function(c, a, p))
        cover = torch.sigmoid(inside / self.sigma)
        free = torch.log(1 - cover).sum(1)  # planted: G204
        return 1 - torch.exp(free)


class Shape(nn.Module):
    def __init__(self, points=32, code=64):
        super().__init__()
        self.points = points
        self.decode = nn.Sequential(nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, points * 2))
        turn = torch.arange(points) / points * 6.2831853
        self.register_buffer("ring", torch.stack([turn.cos(), turn.sin()], -1) * 0.6)
        self.raster = SoftRaster()

    def forward(self, code):
        at = self.ring + 0.1 * torch.tanh(self.decode(code)).float().reshape(-1, self.points, 2)
        center = at.mean(1, keepdim=True).expand_as(at)
        corners = torch.stack([center, at, at.roll(-1, 1)], 2)
        return self.raster(corners)


def make_model():
    return Shape()


def make_batch():
    return torch.randn(4, 64), (torch.rand(4, 48 * 48) > 0.6).float()


def loss_fn(output, batch):
    seen = batch[1]
    inter = (output * seen).sum(1)
    union = (output + seen - output * seen).sum(1)
    return (1 - inter / (union + 1e-6)).mean()
