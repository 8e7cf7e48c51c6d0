"""Sequences by diagonal state spaces as long convolutions (S4D). Careful: kernels are complex FP32, real parts are
negative exponentials, transforms are outside of autocast and of a padded length."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Kernel(nn.Module):
    def __init__(self, ch, state=16, low=1e-3, high=1e-1):
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(ch) * (math.log(high) - math.log(low)) + math.log(low))
        self.log_decay = nn.Parameter(torch.log(0.5 * torch.ones(ch, state)))
        self.turn = nn.Parameter(math.pi * torch.arange(state).repeat(ch, 1).float())
        self.c = nn.Parameter(torch.randn(ch, state, 2) * state**-0.5)

    def forward(self, n):
        dt = self.log_dt.exp()[:, None]
        a = torch.complex(-self.log_decay.exp(), self.turn)
        dta = a * dt
        power = dta[..., None] * torch.arange(n, device=dt.device)
        c = torch.view_as_complex(self.c) * (torch.exp(dta) - 1) / a
        return 2 * torch.einsum("hs,hsn->hn", c, torch.exp(power)).real


class Layer(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.kernel, self.skip = Kernel(ch), nn.Parameter(torch.randn(ch))
        self.mix = nn.Conv1d(ch, 2 * ch, 1)
        self.norm = nn.LayerNorm(ch)

    def forward(self, u):
        n = u.shape[-1]
        with torch.autocast("cuda", enabled=False):
            v = u.float()
            k = self.kernel(n)
            y = torch.fft.irfft(torch.fft.rfft(v, n=2 * n) * torch.fft.rfft(k, n=2 * n), n=2 * n)[..., :n]
            y = y + v * self.skip[:, None]
        y = F.glu(self.mix(F.gelu(y)), dim=1)
        return self.norm((u + y).transpose(1, 2)).transpose(1, 2)


class Long(nn.Module):
    def __init__(self, inputs=3, ch=64, depth=3, classes=10):
        super().__init__()
        self.inp = nn.Conv1d(inputs, ch, 1)
        self.layers = nn.ModuleList(Layer(ch) for _ in range(depth))
        self.out = nn.Linear(ch, classes)

    def forward(self, x):
        x = self.inp(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(-1))


def make_model():
    return Long()


def make_batch():
    return torch.randn(8, 3, 1024), torch.randint(0, 10, (8,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
