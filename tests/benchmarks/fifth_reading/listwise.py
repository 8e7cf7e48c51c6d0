"""A ranking model: listwise loss with summed exponentials of differences between all pairs. Planted: softplus by
hand."""

import torch
import torch.nn as nn


class Ranker(nn.Module):
    def __init__(self, d=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, docs):
        return self.net(docs).squeeze(-1)


class RankNet(nn.Module):
    sigma = 10.0

    def forward(self, s, y):
        diff = s.unsqueeze(2) - s.unsqueeze(1)
        better = (y.unsqueeze(2) > y.unsqueeze(1)).to(s.dtype)
        pair = torch.log1p(torch.exp(-self.sigma * diff))  # planted: G203
        return (pair * better).sum() / better.sum().clamp(min=1)


criterion = RankNet()


def make_model():
    return Ranker()


def make_batch():
    return torch.randn(16, 30, 64), torch.randint(0, 5, (16, 30)).float()


def loss_fn(output, batch):
    return criterion(output, batch[1])
