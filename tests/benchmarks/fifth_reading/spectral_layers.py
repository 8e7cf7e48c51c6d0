"""Fourier neural operator, 2d. Planted: FFT has no kernel in BF16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SpectralConv2d(nn.Module):
    def __init__(self, ch, modes):
        super().__init__()
        self.modes = modes
        scale = 1 / (ch * ch)
        self.w1 = nn.Parameter(scale * torch.rand(ch, ch, modes, modes, dtype=torch.cfloat))

    def forward(self, x):
        b, c, h, w = x.shape
        ft = torch.fft.rfft2(x)  # planted: G403
        out = torch.zeros(b, c, h, w // 2 + 1, dtype=torch.cfloat, device=x.device)
        m = self.modes
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", ft[:, :, :m, :m], self.w1)
        return torch.fft.irfft2(out, s=(h, w))


class FNO(nn.Module):
    def __init__(self, width=32, modes=12, depth=3):
        super().__init__()
        self.lift = nn.Conv2d(3, width, 1)
        self.spectral = nn.ModuleList(SpectralConv2d(width, modes) for _ in range(depth))
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.proj = nn.Sequential(nn.Conv2d(width, 128, 1), nn.GELU(), nn.Conv2d(128, 1, 1))

    def forward(self, x):
        x = self.lift(x)
        for spectral, local in zip(self.spectral, self.local, strict=True):
            x = F.gelu(spectral(x) + local(x))
        return self.proj(x)


def make_model():
    return FNO()


def make_batch():
    return torch.randn(8, 3, 64, 64), torch.randn(8, 1, 64, 64)


def loss_fn(output, batch):
    diff = (output - batch[1]).flatten(1).norm(dim=1)
    return (diff / batch[1].flatten(1).norm(dim=1).clamp(min=1e-6)).mean()
