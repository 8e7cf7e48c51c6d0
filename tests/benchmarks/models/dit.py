"""DiT-B/2 for latents of 32 x 32: norms that time and class shift and scale, trained to match the flow; 96 latents."""

import math

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, CHANNELS, PATCH, WIDTH, HEADS, DEPTH, CLASSES, SINES = 96, 32, 4, 2, 768, 12, 12, 1000, 256
FORGOTTEN = 0.1


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def grid_sines(width, side):
    rates = 1.0 / 10000 ** (torch.arange(width // 4) / (width / 4))
    angles = torch.arange(side)[:, None] * rates
    lines = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([lines.repeat(side, 1), lines.repeat_interleave(side, 0)], dim=1)[None]


class TimeEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t):
        rates = torch.exp(-math.log(10000) * torch.arange(SINES // 2, device=t.device) / (SINES // 2))
        angles = 1000 * t[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, labels):
        if self.training:
            forgotten = torch.rand(labels.shape[0], device=labels.device) < FORGOTTEN
            labels = torch.where(forgotten, CLASSES, labels)
        return self.table(labels)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(grid_sines(WIDTH, SIDE // PATCH), requires_grad=False)
        self.time, self.label = TimeEmbedding(), LabelEmbedding()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.out = nn.Linear(WIDTH, PATCH * PATCH * CHANNELS)

    def forward(self, x, t, labels):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        c = self.time(t) + self.label(labels)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.out(modulate(self.norm(x), shift, scale))
        n = SIDE // PATCH
        return torch.einsum("bhwpqc->bchpwq", x.view(-1, n, n, PATCH, PATCH, CHANNELS)).reshape(
            -1, CHANNELS, SIDE, SIDE
        )


class FlowMatching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = DiT()

    def forward(self, latents, labels):
        noise = torch.randn_like(latents)
        t = torch.rand(latents.shape[0], device=latents.device)
        mixed = torch.lerp(latents, noise, t[:, None, None, None])
        return self.net(mixed, t, labels), noise - latents


def make_model():
    return FlowMatching()


def make_batch():
    return torch.randn(BATCH, CHANNELS, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH,))


def run(model, batch):
    return model(*batch)


def loss_fn(output, batch):
    return F.mse_loss(*output)
