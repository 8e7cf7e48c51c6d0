"""Brain registration with a deformation field and local normalised cross-correlation. Planted: variances of windows
as differences of sums that convolutions give in 16 bits, and divided by."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Field(nn.Module):
    def __init__(self, width=16, size=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(2, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(width, 2 * width, 3, padding=1),
            nn.LeakyReLU(0.2), nn.Conv3d(2 * width, width, 3, padding=1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.flow = nn.Conv3d(width, 3, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-3)
        axis = torch.linspace(-1, 1, size)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)
        self.register_buffer("grid", grid[None])

    def forward(self, moving, fixed):
        flow = self.flow(self.net(torch.cat([moving, fixed], 1)))
        place = self.grid + flow.permute(0, 2, 3, 4, 1).float()
        return F.grid_sample(moving, place, align_corners=True), flow


def local_correlation(made, fixed, size=9):
    ones = torch.ones(1, 1, size, size, size, device=made.device)
    sums = [F.conv3d(x, ones, padding=size // 2) for x in (made, fixed, made * made, fixed * fixed, made * fixed)]
    a, b, aa, bb, ab = sums
    count = size**3
    mean_a, mean_b = a / count, b / count
    cross = ab - mean_b * a - mean_a * b + mean_a * mean_b * count
    spread_a = aa - 2 * mean_a * a + mean_a * mean_a * count  # planted: G218
    spread_b = bb - 2 * mean_b * b + mean_b * mean_b * count
    return -(cross * cross / (spread_a * spread_b + 1e-5)).mean()


def make_model():
    return Field()


def make_batch():
    smooth = 0.8 + 0.05 * F.interpolate(torch.rand(2, 1, 8, 8, 8), size=32, mode="trilinear")
    return {"moving": smooth, "fixed": smooth.roll(1, 2)}


def loss_fn(output, batch):
    made, flow = output
    bend = sum(flow.diff(dim=d).float().square().mean() for d in (2, 3, 4))
    return local_correlation(made, batch["fixed"]) + bend
