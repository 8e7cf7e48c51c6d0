"""Glow, a normalizing flow: activation norms, invertible 1 x 1 convolutions with their determinants, affine couplings;
three levels of 12 steps; 64 images of 64 x 64."""

import math

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, LEVELS, STEPS, HIDDEN, BINS = 64, 64, 3, 12, 512, 256


class ActNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias, self.logs = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x):
        return (x + self.bias) * torch.exp(self.logs), self.logs.sum() * x.shape[2] * x.shape[3]


class Invertible(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels))
        nn.init.orthogonal_(self.weight)

    def forward(self, x):
        logdet = torch.linalg.slogdet(self.weight.float())[1] * x.shape[2] * x.shape[3]
        return F.conv2d(x, self.weight[:, :, None, None]), logdet


class Coupling(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, HIDDEN, 1), nn.ReLU(),
            nn.Conv2d(HIDDEN, channels, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.net[4].weight)

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        logs, shift = self.net(a).float().chunk(2, dim=1)
        scale = torch.sigmoid(logs + 2)
        return torch.cat([a, (b + shift) * scale], dim=1), F.logsigmoid(logs + 2).sum(dim=(1, 2, 3))


class Step(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.parts = nn.ModuleList([ActNorm(channels), Invertible(channels), Coupling(channels)])

    def forward(self, x, logdet):
        for part in self.parts:
            x, change = part(x)
            logdet = logdet + change
        return x, logdet


def likelihood(x, mean, logs):
    return (-0.5 * (math.log(2 * math.pi) + 2 * logs + (x - mean) ** 2 * torch.exp(-2 * logs))).sum(dim=(1, 2, 3))


class Glow(nn.Module):
    def __init__(self):
        super().__init__()
        levels, priors, channels = [], [], 3
        for level in range(LEVELS):
            channels *= 4
            levels.append(nn.ModuleList(Step(channels) for _ in range(STEPS)))
            if level < LEVELS - 1:
                channels //= 2
                priors.append(nn.Conv2d(channels, 2 * channels, 3, padding=1))
        self.levels, self.priors = nn.ModuleList(levels), nn.ModuleList(priors)

    def forward(self, x):
        x = x + torch.rand_like(x) / BINS
        total = torch.full((x.shape[0],), -math.log(BINS) * x[0].numel(), device=x.device)
        for level, steps in enumerate(self.levels):
            x = F.pixel_unshuffle(x, 2)
            for step in steps:
                x, total = step(x, total)
            if level < LEVELS - 1:
                x, left = x.chunk(2, dim=1)
                mean, logs = self.priors[level](x).float().chunk(2, dim=1)
                total = total + likelihood(left, mean, logs)
        return total + likelihood(x, torch.zeros_like(x), torch.zeros_like(x))


def make_model():
    return Glow()


def make_batch():
    return torch.rand(BATCH, 3, SIDE, SIDE) - 0.5


def loss_fn(output, batch):
    return (-output / (math.log(2) * batch[0].numel())).mean()
