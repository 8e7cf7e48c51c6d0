"""A denoiser for 64 x 64 images: residual blocks, group norms, attention at two scales, v-prediction."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def time_embedding(t, dim):
    half = dim // 2
    freq = torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / half)
    arg = t.float()[:, None] * freq[None]
    return torch.cat([arg.cos(), arg.sin()], dim=-1)


class Res(nn.Module):
    def __init__(self, cin, cout, temb):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.temb = nn.Linear(temb, cout)
        self.norm2, self.conv2 = nn.GroupNorm(32, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, t):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attn(nn.Module):
    def __init__(self, c, heads=4):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj = nn.GroupNorm(32, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(-1, -2).reshape(b, c, h, w))


class UNet(nn.Module):
    def __init__(self, ch=128, mults=(1, 2, 2), temb=512):
        super().__init__()
        self.ch = ch
        self.time = nn.Sequential(nn.Linear(ch, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.head = nn.Conv2d(3, ch, 3, padding=1)
        self.down, self.up, chans, c = nn.ModuleList(), nn.ModuleList(), [ch], ch
        for i, m in enumerate(mults):
            for _ in range(2):
                self.down.append(nn.ModuleList([Res(c, ch * m, temb), Attn(ch * m) if i else nn.Identity()]))
                c = ch * m
                chans.append(c)
            if i < len(mults) - 1:
                self.down.append(nn.ModuleList([nn.Conv2d(c, c, 3, stride=2, padding=1)]))
                chans.append(c)
        self.mid1, self.mida, self.mid2 = Res(c, c, temb), Attn(c), Res(c, c, temb)
        for i, m in reversed(list(enumerate(mults))):
            for _ in range(3):
                self.up.append(
                    nn.ModuleList([Res(c + chans.pop(), ch * m, temb), Attn(ch * m) if i else nn.Identity()])
                )
                c = ch * m
            if i:
                self.up.append(nn.ModuleList([nn.Conv2d(c, c, 3, padding=1)]))
        self.norm, self.tail = nn.GroupNorm(32, c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x, t):
        emb = self.time(time_embedding(t, self.ch))
        h = self.head(x)
        skips = [h]
        for level in self.down:
            h = level[0](h) if len(level) == 1 else level[1](level[0](h, emb))
            skips.append(h)
        h = self.mid2(self.mida(self.mid1(h, emb)), emb)
        for level in self.up:
            if len(level) == 1:
                h = level[0](F.interpolate(h, scale_factor=2, mode="nearest"))
            else:
                h = level[1](level[0](torch.cat([h, skips.pop()], dim=1), emb))
        return self.tail(F.silu(self.norm(h)))


def make_model():
    return UNet()


def make_batch():
    x0, noise, t = torch.randn(32, 3, 64, 64), torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,))
    a = torch.cos(t / 1000 * math.pi / 2)[:, None, None, None]
    s = torch.sin(t / 1000 * math.pi / 2)[:, None, None, None]
    return (a * x0 + s * noise, t), a * noise - s * x0


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
