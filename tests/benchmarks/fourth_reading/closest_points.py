"""Rigid motion between two point clouds by soft correspondences. Planted: the covariance of the points is a product
in 16 bits, whose SVD does not exist."""

import torch
import torch.nn.functional as F
from torch import nn


class Embed(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 64, 1), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Conv1d(64, width, 1),
        )  # fmt: skip

    def forward(self, points):
        return self.layers(points)


class ClosestPoints(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.embed = Embed(width)

    def forward(self, source, target):
        a, b = self.embed(source), self.embed(target)
        share = F.softmax(torch.matmul(a.transpose(1, 2), b) / a.shape[1] ** 0.5, dim=2)
        matched = torch.matmul(target, share.transpose(1, 2))
        centre_s, centre_m = source.mean(2, keepdim=True), matched.mean(2, keepdim=True)
        covariance = torch.matmul(source - centre_s, (matched - centre_m).transpose(1, 2))
        u, _, vh = torch.linalg.svd(covariance)  # planted: G404
        turn = torch.matmul(vh.transpose(1, 2), u.transpose(1, 2))
        return turn, centre_m - torch.matmul(turn, centre_s)


def make_model():
    return ClosestPoints()


def make_batch():
    source = torch.rand(8, 3, 512)
    turn = torch.linalg.qr(torch.randn(8, 3, 3)).Q
    return {"source": source, "target": turn @ source, "turn": turn}


def loss_fn(output, batch):
    turn, shift = output
    return F.mse_loss(turn @ batch["turn"].transpose(1, 2), torch.eye(3).expand(8, 3, 3)) + shift.square().mean()
