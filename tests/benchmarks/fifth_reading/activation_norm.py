"""Glow step: actnorm, invertible 1x1 by LU in FP32, affine coupling with bounded scale."""

import torch
import torch.nn.functional as F
from torch import nn


class ActNorm(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, ch, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, ch, 1, 1))

    def forward(self, x):
        s = 3.0 * torch.tanh(self.log_scale / 3.0)
        return (x + self.loc) * s.exp(), s.sum() * x.shape[2] * x.shape[3]


class InvConv(nn.Module):
    def __init__(self, ch):
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(ch, ch))
        self.weight = nn.Parameter(q)

    def forward(self, x):
        logdet = torch.linalg.slogdet(self.weight.float())[1] * x.shape[2] * x.shape[3]
        return F.conv2d(x, self.weight[:, :, None, None]), logdet


class Coupling(nn.Module):
    def __init__(self, ch, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(ch // 2, hidden, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, ch, 3, 1, 1),
        )

    def forward(self, x):
        a, b = x.chunk(2, 1)
        h, shift = self.net(a).chunk(2, 1)
        log_s = F.logsigmoid(h + 2.0)
        return torch.cat([a, (b + shift) * torch.sigmoid(h + 2.0)], 1), log_s.flatten(1).sum(1)


class Glow(nn.Module):
    def __init__(self, ch=16, steps=3):
        super().__init__()
        self.steps = nn.ModuleList(nn.ModuleList([ActNorm(ch), InvConv(ch), Coupling(ch, 64)]) for _ in range(steps))

    def forward(self, x):
        z, ldj = F.pixel_unshuffle(x, 2), 0
        z = F.pad(z, (0, 0, 0, 0, 0, 4))
        for step in self.steps:
            for layer in step:
                z, d = layer(z)
                ldj = ldj + d
        return z, ldj


def make_model():
    return Glow()


def make_batch():
    return torch.rand(8, 3, 32, 32) - 0.5, None


def loss_fn(output, batch):
    z, ldj = output
    return (0.5 * z.float().pow(2).flatten(1).mean(1) - ldj / z[0].numel()).mean()
