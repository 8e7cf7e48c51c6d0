"""Photographs of pages flattened: a network in BF16 says from where each pixel comes, in pixels of the photograph.
Planted: the places of the grid are counted in BF16, in which neighbours past 256 are the same place."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x):
        return x + self.b(F.gelu(self.a(x)))


class Flatten(nn.Module):
    def __init__(self, width=48, depth=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.body = nn.Sequential(*[Residual(width) for _ in range(depth)])
        self.flow = nn.Conv2d(width, 2, 3, padding=1)

    def grid(self, height, width, like):
        y = torch.arange(height, dtype=like.dtype, device=like.device)  # planted: G211
        x = torch.arange(width, dtype=like.dtype, device=like.device)
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)

    def forward(self, photo):
        h, w = photo.shape[-2:]
        coarse = self.flow(self.body(self.stem(photo.to(self.flow.weight.dtype))))
        flow = 8 * F.interpolate(coarse, scale_factor=8, mode="bilinear", align_corners=False)
        place = self.grid(h, w, flow) + flow.permute(0, 2, 3, 1)
        size = torch.tensor([w - 1, h - 1], dtype=torch.float32, device=photo.device)
        unit = 2 * place.float() / size - 1
        return F.grid_sample(photo, unit, align_corners=True), flow


def make_model():
    return Flatten().bfloat16()


def make_batch():
    photo = F.interpolate(torch.rand(1, 3, 64, 48), size=(512, 384), mode="bilinear", align_corners=False)
    return photo, photo.roll(2, -1)


def loss_fn(output, batch):
    flat, flow = output
    smooth = (flow.diff(dim=-1).float().square().mean() + flow.diff(dim=-2).float().square().mean()) / 64
    return F.l1_loss(flat, batch[1]) + 0.01 * smooth
