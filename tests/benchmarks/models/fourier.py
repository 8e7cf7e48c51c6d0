"""A Fourier neural operator for flows: products of the lowest frequencies, transforms in FP32; 32 fields of 256 x 256,
ten steps in, one out."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, STEPS, WIDTH, MODES, DEPTH, HIDDEN = 32, 256, 10, 64, 32, 4, 256


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = (nn.Parameter(torch.randn(WIDTH, WIDTH, MODES, MODES, 2) / WIDTH**2) for _ in range(2))

    def forward(self, x):
        waves = torch.fft.rfft2(x.float())
        result = torch.zeros_like(waves)
        low, high = torch.view_as_complex(self.low), torch.view_as_complex(self.high)
        result[:, :, :MODES, :MODES] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :MODES, :MODES], low)
        result[:, :, -MODES:, :MODES] = torch.einsum("bixy,ioxy->boxy", waves[:, :, -MODES:, :MODES], high)
        return torch.fft.irfft2(result, s=x.shape[-2:])


class Operator(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Conv2d(STEPS + 2, WIDTH, 1)
        self.spectral = nn.ModuleList(Spectral() for _ in range(DEPTH))
        self.local = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(DEPTH))
        self.project = nn.Sequential(nn.Conv2d(WIDTH, HIDDEN, 1), nn.GELU(), nn.Conv2d(HIDDEN, 1, 1))

    def forward(self, fields):
        b, _, h, w = fields.shape
        rows = torch.linspace(0, 1, h, device=fields.device).view(1, 1, h, 1).expand(b, 1, h, w)
        columns = torch.linspace(0, 1, w, device=fields.device).view(1, 1, 1, w).expand(b, 1, h, w)
        x = self.lift(torch.cat([fields, rows, columns], dim=1))
        for number, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            x = spectral(x) + local(x)
            x = F.gelu(x) if number < DEPTH - 1 else x
        return self.project(x)


def make_model():
    return Operator()


def make_batch():
    return torch.randn(BATCH, STEPS, SIDE, SIDE), torch.randn(BATCH, 1, SIDE, SIDE)


def loss_fn(output, batch):
    wrong, right = (output - batch[1]).flatten(1), batch[1].flatten(1)
    return (wrong.norm(dim=1) / right.norm(dim=1)).mean()
