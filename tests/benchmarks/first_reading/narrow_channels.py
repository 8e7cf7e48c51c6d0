"""A segmentation network of separable convolutions with widths that count in tens, scripted in part. Planted:
channels of 30, 60 and 90 are no multiples of 8."""

import torch
import torch.nn.functional as F
from torch import nn


@torch.jit.script
def hard_swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0


class Block(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        self.wide = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, x):
        return hard_swish(self.norm(self.wide(x)))  # planted: G104


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class Segmenter(nn.Module):
    def __init__(self, widths=(30, 60, 90), classes=16):
        super().__init__()
        self.down = nn.ModuleList(Block(a, b, 2) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.deep = nn.Sequential(*(Block(widths[-1], widths[-1]) for _ in range(3)), Gate(widths[-1]))
        self.up = nn.ModuleList(Block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image):
        x, seen = image, []
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        x = self.deep(x)
        for layer, skip in zip(self.up, seen[-2::-1], strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), skip], 1))
        return F.interpolate(self.out(x), scale_factor=2, mode="bilinear")


def tversky(logits, labels, alpha=0.3, beta=0.7):
    p = logits.softmax(1)
    y = F.one_hot(labels, p.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
    hit, false, missed = (p * y).sum((2, 3)), (p * (1 - y)).sum((2, 3)), ((1 - p) * y).sum((2, 3))
    return 1 - ((hit + 1.0) / (hit + alpha * false + beta * missed + 1.0)).mean()


def make_model():
    return Segmenter()


def make_batch():
    return torch.rand(8, 3, 256, 256), torch.randint(0, 16, (8, 256, 256))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1]) + tversky(output, batch[1])
