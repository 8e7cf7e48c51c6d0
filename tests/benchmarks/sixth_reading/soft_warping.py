"""Gestures are aligned to templates by soft dynamic time warping. Planted: the soft minimum adds exponentials of -cost
/ 0.01 as they are: for costs over 1.04 all three are zero in FP32, and the logarithm is -inf."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, inputs=9, width=96, out=32):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(inputs if i == 0 else width, width, 5, padding=2, dilation=1) for i in range(3)
        )
        self.proj = nn.Linear(width, out)

    def forward(self, x):
        x = x.transpose(1, 2)
        for conv in self.convs:
            x = F.relu(conv(x))
        return F.normalize(self.proj(x.transpose(1, 2)), dim=-1)


def soft_min(a, b, c, gamma):
    total = torch.exp(-a / gamma) + torch.exp(-b / gamma) + torch.exp(-c / gamma)
    return -gamma * torch.log(total)  # planted: G204


def soft_dtw(cost, gamma=0.01):
    batch, n, m = cost.shape
    far = cost.new_full((batch,), 1e3)
    before = [cost.new_zeros(batch)] + [far] * m
    for i in range(n):
        row = [far]
        for j in range(m):
            row.append(cost[:, i, j] + soft_min(before[j], before[j + 1], row[j], gamma))
        before = row
    return before[-1]


class Gestures(nn.Module):
    def __init__(self, classes=6, length=8):
        super().__init__()
        self.encoder = Encoder()
        self.templates = nn.Parameter(torch.randn(classes, length, 32))

    def forward(self, x):
        z = self.encoder(x).float()
        t = F.normalize(self.templates, dim=-1)
        cost = 1 - torch.einsum("bnd,cmd->bcnm", z, t)
        b, c = cost.shape[:2]
        return -soft_dtw(cost.flatten(0, 1).float()).reshape(b, c)


def make_model():
    return Gestures()


def make_batch():
    return torch.randn(16, 10, 9), torch.randint(0, 6, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
