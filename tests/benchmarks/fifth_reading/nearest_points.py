"""Point cloud autoencoder trained on the (unsquared) chamfer distance. Planted: square root of a rounded difference:
below zero."""

import torch
import torch.nn as nn


def pairwise(x, y):
    xx = (x * x).sum(-1)
    yy = (y * y).sum(-1)
    cross = torch.einsum("bnd,bmd->bnm", x, y)
    return xx[:, :, None] + yy[:, None, :] - 2 * cross


def chamfer(x, y):
    dist = pairwise(x, y)
    return dist.min(2).values.sqrt().mean() + dist.min(1).values.sqrt().mean()  # planted: G206


class PointAE(nn.Module):
    def __init__(self, points=512, latent=128):
        super().__init__()
        self.points = points
        self.enc = nn.Sequential(
            nn.Conv1d(3, 64, 1), nn.ReLU(), nn.Conv1d(64, 128, 1), nn.ReLU(), nn.Conv1d(128, latent, 1)
        )
        self.dec = nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, points * 3))

    def forward(self, cloud):
        z = self.enc(cloud.transpose(1, 2)).amax(-1)
        return self.dec(z).view(-1, self.points, 3)


def make_model():
    return PointAE()


def make_batch():
    x = torch.rand(8, 512, 3) * 2 - 1
    return x, x


def loss_fn(output, batch):
    return chamfer(output, batch[1])
