"""Straightens text lines by a thin-plate spline through predicted control points. Planted: r^2 log r^2 of a point
with itself, whose eps of 1e-9 is zero in the 16 bits of the points."""

import torch
import torch.nn.functional as F
from torch import nn


class Straighten(nn.Module):
    def __init__(self, points=16, height=32, width=96):
        super().__init__()
        layers, channels = [], 1
        for out in (32, 64, 128):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
            channels = out
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2 * points))
        top = torch.linspace(-0.9, 0.9, points // 2)
        line = torch.cat([torch.stack([top, -torch.ones_like(top)], 1), torch.stack([top, torch.ones_like(top)], 1)])
        self.net[-1].bias.data.copy_(line.flatten())
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("straight", line)
        self.register_buffer("grid", torch.stack([xs, ys], -1).view(-1, 2))
        self.size = (height, width)

    @staticmethod
    def radial(a, b):
        step = a.unsqueeze(-2) - b.unsqueeze(-3)
        square = step[..., 0] * step[..., 0] + step[..., 1] * step[..., 1]
        return square * torch.log(square + 1e-9)  # planted: G204

    def forward(self, image):
        points = self.net(image).view(len(image), -1, 2)
        kernel = self.radial(points, points).float() + 0.1 * torch.eye(points.shape[1], device=image.device)
        weights = torch.linalg.solve(kernel, (self.straight - points).float())
        away = self.radial(self.grid.to(points.dtype).expand(len(image), -1, -1), points)
        place = self.grid + torch.bmm(away.float(), weights).float()
        return F.grid_sample(image, place.view(len(image), *self.size, 2), align_corners=True)


def make_model():
    return Straighten()


def make_batch():
    return {"image": torch.rand(8, 1, 32, 96), "flat": torch.rand(8, 1, 32, 96)}


def loss_fn(output, batch):
    return F.l1_loss(output, batch["flat"])
