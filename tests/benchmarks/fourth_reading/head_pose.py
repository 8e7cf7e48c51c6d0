"""Head pose as six numbers that two orthogonal axes are made of, trained on the angle between rotations. Careful:
axes and angle are in FP32, and the cosine stays 1e-6 inside of its domain."""

import torch
import torch.nn.functional as F
from torch import nn


def rotation(six):
    a, b = six.float().chunk(2, dim=-1)
    first = F.normalize(a, dim=-1)
    second = F.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


class HeadPose(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        layers, channels = [], 3
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU6()]
            channels = out
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 6))

    def forward(self, image):
        return rotation(self.net(image))


def make_model():
    return HeadPose()


def make_batch():
    return {"image": torch.rand(32, 3, 64, 64), "truth": rotation(torch.randn(32, 6))}


def loss_fn(made, batch):
    trace = (made * batch["truth"]).sum((-2, -1))
    return torch.acos(((trace - 1) / 2).clamp(-1 + 1e-6, 1 - 1e-6)).mean()
