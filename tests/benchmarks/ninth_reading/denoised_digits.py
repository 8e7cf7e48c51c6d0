"""A denoiser with the preconditioning of EDM: noise levels from 0.002 to 80, log-normal; weights so that every level
counts the same."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Body(nn.Module):
    def __init__(self, width=32, temb=64):
        super().__init__()
        self.temb = nn.Sequential(nn.Linear(temb, temb), nn.SiLU(), nn.Linear(temb, width))
        self.register_buffer("rates", 2.0 ** torch.linspace(-4.0, 4.0, temb // 2))
        self.begin = nn.Conv2d(1, width, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.mid1, self.mid2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.end = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.end.weight)

    def forward(self, x, level):
        angle = level[:, None] * self.rates
        c = self.temb(torch.cat((angle.sin(), angle.cos()), -1))[:, :, None, None]
        h = self.begin(x) + c
        h = h + self.mid1(F.silu(self.norm1(h)))
        h = h + self.mid2(F.silu(self.norm2(h)))
        return self.end(h)


class Denoiser(nn.Module):
    def __init__(self, spread=0.5):
        super().__init__()
        self.spread = spread
        self.body = Body()

    def forward(self, noisy, sigma):
        s = sigma.view(-1, 1, 1, 1)
        total = (s.square() + self.spread**2).sqrt()
        keep = self.spread**2 / total.square()
        out = s * self.spread / total
        f = self.body(noisy / total, 0.25 * sigma.log()).float()
        return keep * noisy + out * f


def make_model():
    return Denoiser()


def make_batch():
    clean = torch.rand(32, 1, 32, 32) * 2 - 1
    sigma = (1.2 * torch.randn(32) - 1.2).exp().clamp(0.002, 80.0)
    noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
    return {"noisy": noisy, "sigma": sigma, "clean": clean}


def loss_fn(output, batch):
    sigma = batch["sigma"]
    weight = (sigma.square() + 0.25) / (sigma * 0.5).square()
    return (weight * (output - batch["clean"]).square().flatten(1).mean(-1)).mean()
