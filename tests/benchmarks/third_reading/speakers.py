"""Speaker recognition by x-vectors: dilated convolutions and statistics over time. Planted: the deviation over time of
channels that ReLU may close is the root of an exact zero."""

import torch
from torch import nn


class XVector(nn.Module):
    def __init__(self, mels=80, width=512, speakers=1211):
        super().__init__()
        layers, i = [], mels
        for kernel, dilation in ((5, 1), (3, 2), (3, 3), (1, 1)):
            layers += [nn.Conv1d(i, width, kernel, dilation=dilation), nn.BatchNorm1d(width), nn.ReLU()]
            i = width
        self.frames = nn.Sequential(*layers)
        self.embed = nn.Linear(2 * width, 256)
        self.out = nn.Linear(256, speakers)

    def forward(self, mel):
        h = self.frames(mel)
        mean = h.mean(dim=2)
        deviation = torch.sqrt(((h - mean.unsqueeze(2)) ** 2).mean(dim=2))  # planted: G206
        return self.out(torch.relu(self.embed(torch.cat((mean, deviation), dim=1))))


def make_model():
    return XVector()


def make_batch():
    return torch.randn(32, 80, 300), torch.randint(0, 1211, (32,))


def loss_fn(logits, batch):
    return nn.functional.cross_entropy(logits, batch[1])
