"""Forecasts by autocorrelation instead of attention (Autoformer). Planted: queries and keys go into a Fourier transform
in 16 bits."""

import math

import torch
from torch import nn


class AutoCorrelation(nn.Module):
    def __init__(self, d, factor=2):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.factor = factor

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        length = x.shape[1]
        both = torch.fft.rfft(q, dim=1) * torch.conj(torch.fft.rfft(k, dim=1))  # planted: G403
        scores = torch.fft.irfft(both, n=length, dim=1).mean(-1)
        top = int(self.factor * math.log(length))
        weights, delays = torch.topk(scores.mean(0), top)
        shares = torch.softmax(weights, -1)
        at = torch.arange(length, device=x.device)
        moved = [v[:, (at + delays[i]) % length] * shares[i] for i in range(top)]
        return self.o(torch.stack(moved).sum(0))


class Decompose(nn.Module):
    def __init__(self, kernel=25):
        super().__init__()
        self.mean = nn.AvgPool1d(kernel, 1, kernel // 2, count_include_pad=False)

    def forward(self, x):
        trend = self.mean(x.transpose(1, 2)).transpose(1, 2)
        return x - trend, trend


class Forecast(nn.Module):
    def __init__(self, channels=7, d=128, past=96, future=96):
        super().__init__()
        self.embed, self.attend, self.split = nn.Linear(channels, d), AutoCorrelation(d), Decompose()
        self.inner = nn.Sequential(nn.Linear(d, 512), nn.GELU(), nn.Linear(512, d))
        self.time, self.out = nn.Linear(past, future), nn.Linear(d, channels)

    def forward(self, past):
        x = self.embed(past)
        x, trend = self.split(x + self.attend(x))
        x, more = self.split(x + self.inner(x))
        return self.out(self.time((x + trend + more).transpose(1, 2)).transpose(1, 2))


def make_model():
    return Forecast()


def make_batch():
    return torch.randn(32, 96, 7), torch.randn(32, 96, 7)


def loss_fn(output, batch):
    return nn.functional.mse_loss(output, batch[1])
