"""Edge convolutions on point clouds with neighbours by expanded distances, and a decoder with a chamfer loss. Planted:
the loss takes the root of the expanded squares, which 16-bit products leave negative."""

import torch
import torch.nn.functional as F
from torch import nn


def neighbours(x, k):
    norms = (x * x).sum(-1)
    squares = norms[:, :, None] + norms[:, None] - 2 * x @ x.transpose(1, 2)
    return squares.topk(k, dim=-1, largest=False).indices


class EdgeConv(nn.Module):
    def __init__(self, inner, outer, k=16):
        super().__init__()
        self.k, self.net = k, nn.Sequential(nn.Linear(2 * inner, outer), nn.LeakyReLU(0.2), nn.Linear(outer, outer))

    def forward(self, x):
        near = neighbours(x.detach(), self.k)
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        around = x[rows, near]
        centre = x[:, :, None].expand_as(around)
        return self.net(torch.cat([centre, around - centre], -1)).amax(2)


class AutoEncoder(nn.Module):
    def __init__(self, width=64, latent=512, points=512):
        super().__init__()
        self.first, self.second = EdgeConv(4, width), EdgeConv(width, 2 * width)
        self.code = nn.Linear(3 * width, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 1024), nn.ReLU(), nn.Linear(1024, 4 * points))

    def forward(self, points):
        a = self.first(points)
        b = self.second(a)
        code = self.code(torch.cat([a, b], -1)).amax(1)
        return self.decoder(code).view(len(points), -1, 4)


def make_model():
    return AutoEncoder()


def make_batch():
    points = F.pad(torch.rand(16, 512, 3) * 2 - 1, (0, 1))
    return points, points


def loss_fn(seen, batch):
    goal = batch[1]
    norms, others = (seen * seen).sum(-1), (goal * goal).sum(-1)
    squares = norms[:, :, None] + others[:, None] - 2 * torch.bmm(seen, goal.transpose(1, 2))
    distance = torch.sqrt(squares)  # planted: G206
    return distance.amin(1).mean() + distance.amin(2).mean()
