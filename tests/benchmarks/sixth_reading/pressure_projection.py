"""A learnt corrector of a coarse flow solver; the velocity is made free of divergence in Fourier space. Planted: the
Laplacian's eigenvalue of the constant mode is zero, and so is its divergence: 0 / 0 in FP32."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def wave_numbers(n):
    k = 2 * math.pi * torch.fft.fftfreq(n, d=1.0 / n)
    return k[:, None].expand(n, n), k[None, :].expand(n, n)


class Projection(nn.Module):
    def __init__(self, n):
        super().__init__()
        kx, ky = wave_numbers(n)
        self.register_buffer("kx", kx.clone())
        self.register_buffer("ky", ky.clone())

    def forward(self, velocity):
        spectrum = torch.fft.fft2(velocity)
        u, v = spectrum[:, 0], spectrum[:, 1]
        square = self.kx**2 + self.ky**2
        divergence = self.kx * u + self.ky * v
        pressure = divergence / square  # planted: G205
        free = torch.stack([u - self.kx * pressure, v - self.ky * pressure], 1)
        return torch.fft.ifft2(free).real


class Corrector(nn.Module):
    def __init__(self, n=64, ch=48):
        super().__init__()
        self.lift = nn.Conv2d(2, ch, 5, padding=2, padding_mode="circular")
        self.convs = nn.ModuleList(nn.Conv2d(ch, ch, 3, padding=1, padding_mode="circular") for _ in range(4))
        self.out = nn.Conv2d(ch, 2, 5, padding=2, padding_mode="circular")
        self.project = Projection(n)

    def forward(self, velocity):
        h = F.gelu(self.lift(velocity))
        for conv in self.convs:
            h = h + F.gelu(conv(h))
        with torch.autocast("cuda", enabled=False):
            return self.project(velocity + self.out(h.float()))


def make_model():
    return Corrector()


def make_batch():
    return torch.randn(8, 2, 64, 64), torch.randn(8, 2, 64, 64)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
