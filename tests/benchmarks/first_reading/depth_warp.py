"""Self-supervised depth: a second view is warped by predicted disparities and compared by SSIM. Planted: pixel
columns up to 639 are made in the 16-bit format of the disparities before these are added, which BF16 rounds to
even numbers and multiples of four."""

import torch
import torch.nn.functional as F
from torch import nn

HEIGHT, WIDTH = 192, 640


class Step(nn.Sequential):
    def __init__(self, inner, outer, stride=1):
        super().__init__(nn.Conv2d(inner, outer, 3, stride, 1, padding_mode="reflect"), nn.ELU(inplace=True))


class DepthNet(nn.Module):
    def __init__(self, widths=(32, 64, 128, 256)):
        super().__init__()
        inner = (3, *widths[:-1])
        self.down = nn.ModuleList(Step(a, b, 2) for a, b in zip(inner, widths, strict=True))
        self.up = nn.ModuleList(Step(b + a, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.out = nn.Conv2d(widths[0], 8, 3, padding=1)

    def forward(self, left):
        skips, x = [], left
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for layer, skip in zip(self.up, skips[-2::-1], strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return torch.sigmoid(self.out(F.interpolate(x, scale_factor=2)))[:, :1] * 100


def warp(image, disparity):
    b, _, h, w = image.shape
    columns = torch.arange(w, device=image.device, dtype=disparity.dtype)
    rows = torch.linspace(-1, 1, h, device=image.device)[:, None].expand(h, w)
    moved = columns[None, None, None] - disparity  # planted: G211
    across = moved.float().squeeze(1) / (w - 1) * 2 - 1
    return F.grid_sample(
        image, torch.stack([across, rows.expand(b, h, w)], -1), padding_mode="border", align_corners=True
    )


def dissimilarity(a, b):
    def blur(x):
        return F.avg_pool2d(x, 3, 1)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    return ((1 - top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))) / 2).clamp(0, 1)


def make_model():
    return DepthNet()


def make_batch():
    return torch.rand(8, 3, HEIGHT, WIDTH), torch.rand(8, 3, HEIGHT, WIDTH)


def loss_fn(disparity, batch):
    left, right = batch
    seen = warp(right, disparity)
    photometric = 0.85 * dissimilarity(seen, left).mean() + 0.15 * (seen - left).abs().mean()
    smooth = (disparity[..., 1:] - disparity[..., :-1]).abs().mean()
    return photometric + 1e-3 * smooth
