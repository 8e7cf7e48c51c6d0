"""Up-conversion of SDR film to HDR: a residual net says the gain map, by which each pixel's linear light is
multiplied, and the loss is taken after the perceptual quantiser (ST 2084), in which displays work."""

import torch
import torch.nn as nn
import torch.nn.functional as F

M1, M2 = 2610 / 16384, 2523 / 32
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def perceptual(nits):
    """The perceptual quantiser's code in [0, 1] of light in nits, 0 to 10,000."""
    light = (nits / 10000.0).clamp(max=1.0) ** M1  # planted: G206
    return ((C1 + C2 * light) / (1.0 + C3 * light)) ** M2


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.b(F.relu(self.a(x)))


class ToHdr(nn.Module):
    def __init__(self, width=64, blocks=3):
        super().__init__()
        self.begin = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.end = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, frame):
        gain = F.softplus(self.end(self.blocks(self.begin(frame))).float())
        return 100.0 * frame.pow(2.4) * gain


def make_model():
    return ToHdr()


def make_batch():
    frame = torch.rand(2, 3, 96, 96)
    frame[:, :, :12] = 0.0
    frame[:, :, -12:] = 0.0
    return frame, 1000.0 * frame.pow(2.4)


def loss_fn(output, batch):
    return F.l1_loss(perceptual(output), perceptual(batch[1]))
