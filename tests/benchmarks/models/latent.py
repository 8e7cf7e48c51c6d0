"""A text-conditioned U-Net as in latent diffusion: convolutions, self- and cross-attention; 16 latents of 64 x 64."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, BASE, HEADS, TEXT, WORDS = 16, 64, 128, 8, 768, 77


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs), nn.GroupNorm(32, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(4 * BASE, outputs)
        self.drop = nn.Dropout(0.1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, t):
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(self.drop(F.silu(self.norm2(y))))


class Attend(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(self, x, context):
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (self.q(x), self.k(context), self.v(context)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.cross = Attend(width, width), Attend(width, TEXT)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x, text):
        b, c, h, w = x.shape
        y = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        normed = self.norms[0](y)
        y = y + self.own(normed, normed)
        y = y + self.cross(self.norms[1](y), text)
        value, gate = self.up(self.norms[2](y)).chunk(2, dim=-1)
        y = y + self.down(value * F.gelu(gate))
        return x + self.out(y.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous())


class UNet(nn.Module):
    def __init__(self, multipliers=(1, 2, 4)):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(BASE, 4 * BASE), nn.SiLU(), nn.Linear(4 * BASE, 4 * BASE))
        self.first = nn.Conv2d(4, BASE, 3, padding=1)
        widths = [BASE * each for each in multipliers]
        self.down, self.up, inputs = nn.ModuleList(), nn.ModuleList(), BASE
        for level, width in enumerate(widths):
            attend = Transformer(width) if level else None
            smaller = nn.Conv2d(width, width, 3, 2, 1) if level < len(widths) - 1 else nn.Identity()
            self.down.append(nn.ModuleList([Residual(inputs, width), attend, smaller]))
            inputs = width
        self.middle = Residual(inputs, inputs)
        for level in reversed(range(len(widths))):
            attend = Transformer(widths[level]) if level else None
            larger = nn.Conv2d(widths[level], widths[level], 3, padding=1) if level else nn.Identity()
            self.up.append(nn.ModuleList([Residual(inputs + widths[level], widths[level]), attend, larger]))
            inputs = widths[level]
        self.norm, self.last = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, 4, 3, padding=1)

    def forward(self, x, steps, text):
        rates = torch.exp(-torch.arange(BASE // 2, device=x.device) / (BASE // 2) * 9.2)
        angles = steps[:, None].float() * rates
        t = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        x, kept = self.first(x), []
        for residual, attend, smaller in self.down:
            x = residual(x, t)
            x = x if attend is None else attend(x, text)
            kept.append(x)
            x = smaller(x)
        x = self.middle(x, t)
        for level, (residual, attend, larger) in enumerate(self.up):
            x = residual(torch.cat([x, kept.pop()], dim=1), t)
            x = x if attend is None else attend(x, text)
            x = larger(F.interpolate(x, scale_factor=2.0)) if level < len(self.up) - 1 else x
        return self.last(F.silu(self.norm(x)))


def make_model():
    return UNet()


def make_batch():
    inputs = (torch.randn(BATCH, 4, SIDE, SIDE), torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, WORDS, TEXT))
    return inputs, torch.randn(BATCH, 4, SIDE, SIDE)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
