"""A small codec of pictures: eight-bit codes by a straight-through rounding in FP32, a learnt factorised prior for
their length, and the error of the picture."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Codec(nn.Module):
    def __init__(self, width=48, codes=16):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(width, width, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(width, codes, 3, 1, 1),
        )
        self.up = nn.Sequential(
            nn.Conv2d(codes, width, 3, 1, 1),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )
        self.middle, self.spread = nn.Parameter(torch.zeros(codes, 1, 1)), nn.Parameter(torch.zeros(codes, 1, 1))

    def bits(self, code):
        """Bits of each code: a logistic's mass on a step of one, in logarithms."""
        scale = F.softplus(self.spread) + 0.1
        high, low = (code + 0.5 - self.middle) / scale, (code - 0.5 - self.middle) / scale
        log_mass = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(-1.0 / scale))
        return -log_mass / 0.6931

    def forward(self, x):
        code = self.down(x).float().clamp(-128.0, 127.0)
        hard = code + (code.round() - code).detach()
        return torch.sigmoid(self.up(hard)), self.bits(hard).flatten(1).sum(1)


def make_model():
    return Codec()


def make_batch():
    return torch.rand(4, 3, 64, 64), None


def loss_fn(output, batch):
    picture, bits = output
    return 1000.0 * F.mse_loss(picture.float(), batch[0]) + bits.mean() / 4096.0
