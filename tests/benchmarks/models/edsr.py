"""EDSR, a residual network without norms that magnifies four times by pixel shuffles; 64 patches of 48 x 48."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, PATCH, WIDTH, DEPTH, MEAN = 64, 48, 64, 16, (0.4488, 0.4371, 0.4040)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(inplace=True), conv(WIDTH, WIDTH))

    def forward(self, x):
        return x + self.layers(x)


class EDSR(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.head = conv(3, WIDTH)
        self.body = nn.Sequential(*(Block() for _ in range(DEPTH)), conv(WIDTH, WIDTH))
        larger = [layer for _ in range(2) for layer in (conv(WIDTH, 4 * WIDTH), nn.PixelShuffle(2))]
        self.tail = nn.Sequential(*larger, conv(WIDTH, 3))

    def forward(self, x):
        x = self.head(x - self.mean)
        return self.tail(x + self.body(x)) + self.mean


def make_model():
    return EDSR()


def make_batch():
    return torch.rand(BATCH, 3, PATCH, PATCH), torch.rand(BATCH, 3, 4 * PATCH, 4 * PATCH)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
