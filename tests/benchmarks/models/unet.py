"""A U-Net as in diffusion models: residual blocks, attention at the low resolutions; 32 images of 64 x 64."""

import torch
import torch.nn.functional as F
from torch import nn

BASE = 128


class Residual(nn.Module):
    def __init__(self, inputs, outputs, time):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2 = nn.GroupNorm(32, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, t):
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    def __init__(self, width, heads=8):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (t.view(b, h * w, self.heads, -1).transpose(1, 2) for t in self.qkv(y).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(y).transpose(1, 2).reshape(b, c, h, w)


class UNet(nn.Module):
    def __init__(self, base=BASE, multipliers=(1, 2, 4)):
        super().__init__()
        time = 4 * base
        self.time = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(3, base, 3, padding=1)
        widths = [base * m for m in multipliers]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = base
        for level, width in enumerate(widths):
            attention = Attention(width) if level else nn.Identity()
            last = level == len(widths) - 1
            smaller = nn.Identity() if last else nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(nn.ModuleList([Residual(inputs, width, time), attention, smaller]))
            inputs = width
        self.middle = Residual(inputs, inputs, time)
        for width in reversed(widths):
            self.up.append(Residual(inputs + width, width, time))
            inputs = width
        self.norm = nn.GroupNorm(32, inputs)
        self.last = nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, x, steps):
        rates = torch.exp(-torch.arange(BASE // 2, device=x.device) / (BASE // 2) * 9.2)
        angles = steps[:, None].float() * rates
        t = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        x, kept = self.first(x), []
        for residual, attention, smaller in self.down:
            x = attention(residual(x, t))
            kept.append(x)
            x = smaller(x)
        x = self.middle(x, t)
        for index, residual in enumerate(self.up):
            if index:
                x = F.interpolate(x, scale_factor=2.0)
            x = residual(torch.cat([x, kept.pop()], dim=1), t)
        return self.last(F.silu(self.norm(x)))


def make_model():
    return UNet()


def make_batch():
    return (torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,))), torch.randn(32, 3, 64, 64)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
