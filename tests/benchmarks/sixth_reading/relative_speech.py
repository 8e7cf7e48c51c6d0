"""A small Conformer with relative positions (as Transformer-XL shifts them), macaron halves and convolution modules.
Careful: key padding is -inf where each row keeps places, the softmax in FP32, lengths are at least one."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def positions(n, dim, device):
    place = torch.arange(n - 1, -n, -1.0, device=device)
    rate = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = place[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class RelativeAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.h, self.d = heads, dim // heads
        self.qkv, self.pos, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.u, self.v = nn.Parameter(torch.zeros(heads, self.d)), nn.Parameter(torch.zeros(heads, self.d))

    def shift(self, x):
        b, h, n, m = x.shape
        x = F.pad(x, (1, 0)).view(b, h, m + 1, n)
        return x[:, :, 1:].reshape(b, h, n, m)[..., : m // 2 + 1]

    def forward(self, x, valid):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, self.d).unbind(2)
        p = self.pos(positions(n, self.h * self.d, x.device)).view(-1, self.h, self.d)
        scale = self.d**-0.5
        content = torch.einsum("bihd,bjhd->bhij", (q + self.u) * scale, k)
        place = self.shift(torch.einsum("bihd,jhd->bhij", (q + self.v) * scale, p))
        scores = (content + place).float().masked_fill(~valid[:, None, None], float("-inf"))
        y = torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1).to(v.dtype), v)
        return self.out(y.reshape(b, n, -1))


class ConvModule(nn.Module):
    def __init__(self, dim, kernel=15):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(dim), nn.Conv1d(dim, 2 * dim, 1)
        self.depth = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.bn, self.down = nn.BatchNorm1d(dim), nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        x = F.glu(self.up(self.norm(x).transpose(1, 2)), dim=1)
        return self.down(F.silu(self.bn(self.depth(x)))).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim=144, heads=4):
        super().__init__()
        half = [
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)) for _ in "ab"
        ]
        self.a, self.b = half
        self.n, self.att, self.conv, self.last = (
            nn.LayerNorm(dim),
            RelativeAttention(dim, heads),
            ConvModule(dim),
            nn.LayerNorm(dim),
        )

    def forward(self, x, valid):
        x = x + 0.5 * self.a(x)
        x = x + self.att(self.n(x), valid)
        x = x + self.conv(x)
        return self.last(x + 0.5 * self.b(x))


class Recogniser(nn.Module):
    def __init__(self, mels=80, dim=144, depth=2, symbols=64):
        super().__init__()
        self.sub = nn.Conv1d(mels, dim, 3, 2, 1)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.out = nn.Linear(dim, symbols)

    def forward(self, mel, lengths):
        x = F.relu(self.sub(mel)).transpose(1, 2)
        valid = torch.arange(x.shape[1], device=x.device) < (lengths[:, None] // 2).clamp(min=1)
        for block in self.blocks:
            x = block(x, valid)
        return F.log_softmax(self.out(x).float(), -1)


def make_model():
    return Recogniser()


def make_batch():
    return (torch.randn(4, 80, 192), torch.tensor([192, 160, 120, 100])), torch.randint(1, 64, (4, 16))


def loss_fn(output, batch):
    lengths = (batch[0][1] // 2).clamp(min=1)
    return F.ctc_loss(output.transpose(0, 1), batch[1], lengths, torch.full((4,), 16), zero_infinity=True)
