"""Re-identification with the hardest triplets of the batch. Planted: the distance of every pair is the root of its
squares, of a picture and itself too."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(inner, outer, 1, stride, bias=False)
        self.a, self.b, self.c = (nn.BatchNorm2d(outer) for _ in range(3))

    def forward(self, x):
        return F.relu(self.c(self.skip(x)) + self.b(self.second(F.relu(self.a(self.first(x))))))


class Embedder(nn.Module):
    def __init__(self, width=64, out=256):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, 2, 3)
        self.body = nn.Sequential(Block(width, 128, 2), Block(128, 256, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(256, out)

    def forward(self, image):
        return self.out(self.body(F.relu(self.stem(image))))


def make_model():
    return Embedder()


def make_batch():
    return torch.rand(64, 3, 128, 64), torch.arange(16).repeat_interleave(4)


def loss_fn(x, batch):
    who = batch[1]
    distance = (x[:, None] - x[None]).pow(2).sum(-1).sqrt()  # planted: G206
    same = who[:, None] == who[None]
    far = torch.where(same, distance, torch.zeros_like(distance)).amax(1)
    near = torch.where(same, torch.full_like(distance, 1e4), distance).amin(1)
    return F.relu(far - near + 0.3).mean()
