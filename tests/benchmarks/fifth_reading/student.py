"""Probabilistic forecaster: Student-t negative log-likelihood, scale by exp, degrees of freedom by softplus alone.
Planted: division by softplus, which underflows to zero in FP16."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class TCN(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.net = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else ch, ch, 3, dilation=2**i, padding=2 ** (i + 1)) for i in range(4)
        )
        self.head = nn.Conv1d(ch, 3, 1)

    def forward(self, x):
        n = x.shape[-1]
        for conv in self.net:
            x = F.gelu(conv(x)[..., :n])
        mu, scale, df = self.head(x).unbind(1)
        return mu, F.softplus(scale), F.softplus(df)


def nll(mu, scale, df, y):
    z = (y - mu) / scale  # planted: G205
    return -(
        torch.lgamma((df + 1) / 2)
        - torch.lgamma(df / 2)
        - 0.5 * torch.log(math.pi * df)
        - torch.log(scale)
        - (df + 1) / 2 * torch.log1p(z**2 / df)
    ).mean()


def make_model():
    return TCN()


def make_batch():
    x = torch.randn(16, 1, 128)
    return x, x[:, 0].roll(-1, 1)


def loss_fn(output, batch):
    return nll(*output, batch[1])
