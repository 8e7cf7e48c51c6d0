"""VICReg: invariance, variance and covariance of two views' embeddings. Planted: the standard deviation is the root
of a variance without an eps, whose gradient is infinite for a collapsed dimension, which the loss exists to
prevent."""

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Sequential):
    def __init__(self, inner, outer, stride):
        super().__init__(
            nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
        )


class VICReg(nn.Module):
    def __init__(self, dim=2048):
        super().__init__()
        self.backbone = nn.Sequential(
            Bottleneck(3, 64, 2), Bottleneck(64, 128, 2), Bottleneck(128, 256, 2), Bottleneck(256, 512, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.expander = nn.Sequential(
            nn.Linear(512, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
        )  # fmt: skip

    def forward(self, first, second):
        return self.expander(self.backbone(first)), self.expander(self.backbone(second))


def make_model():
    return VICReg()


def make_batch():
    images = torch.rand(256, 3, 64, 64)
    return images, images + 0.1 * torch.randn_like(images)


def run(model, batch):
    return model(*batch)


def off_diagonal(m):
    n = m.shape[0]
    return m.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def loss_fn(output, batch):
    x, y = (view.float() for view in output)
    invariance = F.mse_loss(x, y)
    total = 25.0 * invariance
    for view in (x, y):
        view = view - view.mean(dim=0)
        deviation = torch.sqrt(view.var(dim=0))  # planted: G206
        covariance = (view.T @ view) / (view.shape[0] - 1)
        total = total + 25.0 * F.relu(1 - deviation).mean() / 2
        total = total + off_diagonal(covariance).pow(2).sum() / view.shape[1]
    return total
