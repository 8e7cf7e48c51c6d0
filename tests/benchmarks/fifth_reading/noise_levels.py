"""Score network; the score of the forward process is -noise / sigma_t. Planted: division by zero: sigma of step 0."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Schedule(nn.Module):
    def __init__(self, steps=1000, beta_start=0.0, beta_end=0.02):
        super().__init__()
        betas = torch.linspace(beta_start, beta_end, steps)
        bar = torch.cumprod(1.0 - betas, dim=0)
        self.register_buffer("scale", bar.sqrt())
        self.register_buffer("sigma", (1.0 - bar).sqrt())

    def at(self, name, t, ndim):
        return getattr(self, name)[t].view(-1, *([1] * (ndim - 1)))


class ResBlock(nn.Module):
    def __init__(self, ch, emb):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(8, ch), nn.GroupNorm(8, ch)
        self.c1, self.c2 = nn.Conv2d(ch, ch, 3, padding=1), nn.Conv2d(ch, ch, 3, padding=1)
        self.emb = nn.Linear(emb, ch)

    def forward(self, x, e):
        h = self.c1(F.silu(self.n1(x))) + self.emb(e)[:, :, None, None]
        return x + self.c2(F.silu(self.n2(h)))


class ScoreNet(nn.Module):
    def __init__(self, ch=64, emb=128):
        super().__init__()
        self.schedule = Schedule()
        self.temb = nn.Sequential(nn.Embedding(1000, emb), nn.Linear(emb, emb), nn.SiLU())
        self.inp = nn.Conv2d(3, ch, 3, padding=1)
        self.blocks = nn.ModuleList(ResBlock(ch, emb) for _ in range(3))
        self.out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x0, noise, t):
        sigma = self.schedule.at("sigma", t, x0.dim())
        xt = self.schedule.at("scale", t, x0.dim()) * x0 + sigma * noise
        h, e = self.inp(xt), self.temb(t)
        for b in self.blocks:
            h = b(h, e)
        target = -noise / sigma  # planted: G205
        return self.out(h), target


def make_model():
    return ScoreNet()


def make_batch():
    return (torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32), torch.randint(0, 1000, (8,))), None


def loss_fn(output, batch):
    return F.mse_loss(*output)
