"""Rain by a hurdle model: a probability of rain and a gamma density where it rained. Planted: the density's logarithm
is taken of all amounts and where() picks afterwards; its gradient at dry places is 0 * inf, NaN in any format."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Rain(nn.Module):
    def __init__(self, fields=10, ch=64):
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(fields, ch, 3, padding=1), nn.GELU(), nn.Conv2d(ch, ch, 3, padding=1), nn.GELU()
        )
        self.wet = nn.Conv2d(ch, 1, 1)
        self.params = nn.Conv2d(ch, 2, 1)
        self.gain = nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, x):
        h = self.enc(x)
        shape, rate = (F.softplus(self.params(h).float()) + 1e-2).unbind(1)
        return self.wet(h).float().squeeze(1), shape, rate, self.gain


def hurdle(output, rain):
    wet, shape, rate, gain = output
    scaled = rain * gain
    rises = (shape - 1) * torch.log(scaled)  # planted: G204
    density = shape * rate.log() - torch.lgamma(shape) + rises - rate * scaled
    happened = F.binary_cross_entropy_with_logits(wet, (rain > 0).float(), reduction="none")
    return (happened - torch.where(rain > 0, density, torch.zeros_like(density))).mean()


def make_model():
    return Rain()


def make_batch():
    rain = (torch.rand(8, 32, 32) - 0.6).clamp(min=0) * 20
    return torch.randn(8, 10, 32, 32), rain


def loss_fn(output, batch):
    return hurdle(output, batch[1])
