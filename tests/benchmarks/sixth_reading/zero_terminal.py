"""Diffusion of small pictures with a schedule that ends in pure noise (zero terminal SNR) and a perceptual term on the
predicted picture. Planted: the picture is (x - s eps) / a, and a is exactly zero at the last step: infinite in
FP32."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def zero_terminal_schedule(steps):
    beta = torch.linspace(1e-4**0.5, 0.02**0.5, steps) ** 2
    root = torch.cumprod(1 - beta, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root, (1 - root**2).sqrt()


def embed_steps(t, dim):
    rate = torch.exp(-math.log(1e4) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angle = t.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class Res(nn.Module):
    def __init__(self, ch, emb):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(8, ch), nn.GroupNorm(8, ch)
        self.c1, self.c2 = nn.Conv2d(ch, ch, 3, padding=1), nn.Conv2d(ch, ch, 3, padding=1)
        self.t = nn.Linear(emb, ch)

    def forward(self, x, e):
        h = self.c1(F.silu(self.n1(x))) + self.t(e)[:, :, None, None]
        return x + self.c2(F.silu(self.n2(h)))


class Denoiser(nn.Module):
    def __init__(self, ch=64, depth=3, steps=1000):
        super().__init__()
        a, s = zero_terminal_schedule(steps)
        self.register_buffer("a", a)
        self.register_buffer("s", s)
        self.inp, self.out = nn.Conv2d(3, ch, 3, padding=1), nn.Conv2d(ch, 3, 3, padding=1)
        self.emb = nn.Sequential(nn.Linear(ch, ch), nn.SiLU())
        self.res = nn.ModuleList(Res(ch, ch) for _ in range(depth))
        self.ch = ch

    def forward(self, x0, noise, t):
        a, s = self.a[t].view(-1, 1, 1, 1), self.s[t].view(-1, 1, 1, 1)
        x = a * x0 + s * noise
        h, e = self.inp(x), self.emb(embed_steps(t, self.ch))
        for res in self.res:
            h = res(h, e)
        eps = self.out(h).float()
        picture = (x - s * eps) / a  # planted: G205
        return eps, picture.clamp(-1, 1)


def make_model():
    return Denoiser()


def make_batch():
    t = torch.cat([torch.randint(0, 1000, (15,)), torch.tensor([999])])
    x0, noise = torch.rand(16, 3, 32, 32) * 2 - 1, torch.randn(16, 3, 32, 32)
    return (x0, noise, t), None


def loss_fn(output, batch):
    eps, picture = output
    x0, noise, _ = batch[0]
    return F.mse_loss(eps, noise) + 0.1 * F.l1_loss(F.avg_pool2d(picture, 4), F.avg_pool2d(x0, 4))
