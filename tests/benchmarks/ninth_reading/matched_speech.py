"""Flow matching for a vocoder: the net sees a point on the straight way from noise to mel frames and says where the
way ends; the velocity follows from that. Trained in BF16 throughout, as its authors' script does."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ConvNext(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.deep = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)

    def forward(self, x, c):
        h = self.norm(self.deep(x).transpose(1, 2)) + c[:, None]
        return x + self.down(F.gelu(self.up(h))).transpose(1, 2)


class Matcher(nn.Module):
    def __init__(self, mels=80, dim=192, layers=3):
        super().__init__()
        self.begin = nn.Conv1d(mels, dim, 7, padding=3)
        self.time = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(ConvNext(dim) for _ in range(layers))
        self.end = nn.Conv1d(dim, mels, 1)
        self.register_buffer("rates", torch.exp(torch.linspace(0.0, 6.0, 32)))

    def forward(self, mel, noise, t):
        at = t.float()[:, None] * self.rates.float()
        c = self.time(torch.cat((at.sin(), at.cos()), -1).to(mel.dtype))
        t = t.to(mel.dtype)[:, None, None]
        point = (1 - t) * noise + t * mel
        h = self.begin(point)
        for layer in self.layers:
            h = layer(h, c)
        end = self.end(h)
        return (end - point) / (1 - t)  # planted: G205


def make_model():
    return Matcher().bfloat16()


def make_batch():
    g = torch.Generator().manual_seed(4)
    return {
        "mel": torch.randn(256, 80, 16, generator=g).bfloat16(),
        "noise": torch.randn(256, 80, 16, generator=g).bfloat16(),
        "t": torch.rand(256, generator=g),
    }


def loss_fn(output, batch):
    velocity = batch["mel"].float() - batch["noise"].float()
    return F.mse_loss(output.float(), velocity)
