"""A residual network of 3-D convolutions for clips: 16 clips of 16 frames, 112 x 112, 400 classes."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, FRAMES, SIDE, CLASSES = 16, 16, 112, 400


def conv(inputs, outputs, kernel=3, stride=1):
    return nn.Sequential(nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm3d(outputs))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        self.skip = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + self.skip(x))


class Clips(nn.Module):
    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(64), nn.ReLU(inplace=True)
        )
        layers, inputs = [], 64
        for number, width in enumerate(widths):
            layers += [Block(inputs, width, 1 if number == 0 else 2), Block(width, width, 1)]
            inputs = width
        self.blocks = nn.Sequential(*layers)
        self.pool, self.head = nn.AdaptiveAvgPool3d(1), nn.Linear(inputs, CLASSES)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def make_model():
    return Clips()


def make_batch():
    return torch.randn(BATCH, 3, FRAMES, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
