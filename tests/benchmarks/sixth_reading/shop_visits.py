"""Visits of shops per hour, zero-inflated Poisson. Planted: the likelihood of a zero is the logarithm of pi + (1 - pi)
exp(-rate); in FP16 the sigmoid pi is zero below -17, and with a rate over 104 so is the rest: -inf."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Shops(nn.Module):
    def __init__(self, shops=400, features=12, dim=32, width=128):
        super().__init__()
        self.shop = nn.Embedding(shops, dim)
        self.hour = nn.Embedding(168, dim)
        self.net = nn.Sequential(nn.Linear(2 * dim + features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.rate = nn.Linear(width, 8)
        self.closed = nn.Linear(width, 8)

    def forward(self, shop, hour, x):
        h = self.net(torch.cat([self.shop(shop), self.hour(hour), x], 1))
        return F.softplus(self.rate(h)), torch.sigmoid(self.closed(h))


def zip_nll(rate, pi, seen):
    none = torch.log(pi + (1 - pi) * torch.exp(-rate))  # planted: G204
    some = torch.log1p(-pi.float().clamp(max=1 - 1e-6)) - rate + seen * torch.log(rate + 1e-6) - torch.lgamma(seen + 1)
    return -torch.where(seen == 0, none, some).mean()


def make_model():
    return Shops()


def make_batch():
    x = (torch.randint(0, 400, (256,)), torch.randint(0, 168, (256,)), torch.randn(256, 12))
    return x, torch.poisson(torch.rand(256, 8) * 30) * (torch.rand(256, 8) > 0.3)


def loss_fn(output, batch):
    return zip_nll(*output, batch[1])
