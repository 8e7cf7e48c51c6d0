"""Robot arms by a diffusion policy over action chunks, the whole model in BF16. Planted: timesteps up to 999 are cast
to BF16, in which neighbours are alike, and the loss is a mean in BF16."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class StepEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, t, dtype):
        half = self.dim // 2
        rate = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1))).to(dtype)
        angle = t.to(dtype)[:, None] * rate[None]  # planted: G211
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1))


class FilmBlock(nn.Module):
    def __init__(self, inp, out, cond):
        super().__init__()
        self.a, self.b = nn.Conv1d(inp, out, 5, padding=2), nn.Conv1d(out, out, 5, padding=2)
        self.film = nn.Linear(cond, 2 * out)
        self.skip = nn.Conv1d(inp, out, 1)

    def forward(self, x, cond):
        scale, shift = self.film(cond)[..., None].chunk(2, 1)
        h = F.mish(self.a(x)) * (1 + scale) + shift
        return F.mish(self.b(h)) + self.skip(x)


class DiffusionPolicy(nn.Module):
    def __init__(self, action=8, observation=64, width=128, cond=128):
        super().__init__()
        self.step = StepEmbedding(cond)
        self.observe = nn.Linear(observation, cond)
        self.first, self.second = FilmBlock(action, width, cond), FilmBlock(width, width, cond)
        self.out = nn.Conv1d(width, action, 1)

    def forward(self, actions, t, observation):
        dtype = self.out.weight.dtype
        cond = self.step(t, dtype) + self.observe(observation.to(dtype))
        x = self.first(actions.to(dtype).transpose(1, 2), cond)
        return self.out(self.second(x, cond)).transpose(1, 2)


def make_model():
    return DiffusionPolicy().bfloat16()


def make_batch():
    noise = torch.randn(64, 16, 8)
    return (noise * 0.8 + 0.2, torch.randint(0, 1000, (64,)), torch.randn(64, 64)), noise


def loss_fn(output, batch):
    return (output - batch[1].to(output.dtype)).square().mean()  # planted: G212
