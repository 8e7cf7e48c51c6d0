"""Counting people by density maps with a Bayesian loss over annotated heads. Planted: each place is shared among
heads by Gaussians of eight pixels; far from all heads every one of them is zero, and so is their sum."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv(inp, out):
    return nn.Sequential(nn.Conv2d(inp, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class DensityNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            conv(3, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2), conv(64, 128), nn.MaxPool2d(2), conv(128, 128)
        )
        self.head = nn.Conv2d(128, 1, 1)

    def forward(self, picture):
        return F.relu(self.head(self.down(picture)))


class BayesLoss(nn.Module):
    def __init__(self, size=512, stride=8, sigma=8.0):
        super().__init__()
        self.sigma = sigma
        line = torch.arange(0, size, stride) + stride / 2
        self.register_buffer("line", line.float())

    def forward(self, heads):
        x = (heads[..., 0, None] - self.line).square()
        y = (heads[..., 1, None] - self.line).square()
        d2 = y[..., :, None] + x[..., None, :]
        near = torch.exp(-d2 / (2 * self.sigma**2))
        return near / near.sum(1, keepdim=True)  # planted: G205


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.bayes = DensityNet(), BayesLoss()

    def forward(self, picture, heads):
        density = self.net(picture).float()
        return (density * self.bayes(heads)).sum((-2, -1))


def make_model():
    return Counter()


def make_batch():
    return (torch.randn(4, 3, 512, 512), torch.rand(4, 24, 2) * 512), torch.ones(4, 24)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
