"""Keypoints of people by the mean of a heat map, with the map's spread as the uncertainty. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Bottleneck(nn.Module):
    def __init__(self, inp, out, stride=1):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(inp, out // 2, 1, bias=False), nn.BatchNorm2d(out // 2), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(out // 2, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Conv2d(inp, out, 1, stride)

    def forward(self, x):
        return F.relu(self.b(self.a(x)) + self.skip(x))


class SoftArgmax(nn.Module):
    def __init__(self, height=64, width=48):
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1).reshape(-1, 2))

    def forward(self, maps):
        share = F.softmax(maps.flatten(2).float(), -1)
        with torch.autocast("cuda", enabled=False):
            mean = share @ self.grid
            off = self.grid[None, None] - mean[:, :, None]
            spread = (share[..., None] * off * off).sum(2)
        return mean, torch.sqrt(spread + 1e-6)


class PoseNet(nn.Module):
    def __init__(self, joints=16):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), Bottleneck(64, 128), Bottleneck(128, 256, 2))
        self.head = nn.Sequential(nn.Conv2d(256, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, joints, 1))
        self.argmax = SoftArgmax()

    def forward(self, picture):
        return self.argmax(self.head(self.down(picture)))


def make_model():
    return PoseNet()


def make_batch():
    visible = (torch.rand(8, 16) > 0.2).float()
    return torch.randn(8, 3, 256, 192), (torch.rand(8, 16, 2) * 2 - 1, visible)


def loss_fn(output, batch):
    mean, spread = output
    target, visible = batch[1]
    nll = 0.5 * ((mean - target) / spread).square() + torch.log(spread)
    return (nll.sum(-1) * visible).sum() / visible.sum().clamp(min=1)
