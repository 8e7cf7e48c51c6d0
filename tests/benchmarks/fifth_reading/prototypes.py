"""Prototypical network with cosine scores, 5-way 5-shot. Planted: division by the norm of a vector that may be
zero."""

import torch
from torch import nn


class ConvNet4(nn.Sequential):
    def __init__(self, ch=64):
        blocks, c = [], 3
        for _ in range(4):
            blocks += [nn.Conv2d(c, ch, 3, padding=1), nn.BatchNorm2d(ch), nn.ReLU(), nn.MaxPool2d(2)]
            c = ch
        super().__init__(*blocks, nn.Flatten())


class Proto(nn.Module):
    def __init__(self, way=5, shot=5):
        super().__init__()
        self.way, self.shot = way, shot
        self.backbone = ConvNet4()
        self.scale = nn.Parameter(torch.tensor(10.0))

    @staticmethod
    def unit(v):
        return v / v.norm(p=2, dim=-1, keepdim=True)  # planted: G205

    def forward(self, support, query):
        protos = self.backbone(support).view(self.way, self.shot, -1).mean(1)
        feats = self.backbone(query)
        return self.scale * self.unit(feats) @ self.unit(protos).t()


def make_model():
    return Proto()


def make_batch():
    return (torch.rand(25, 3, 64, 64), torch.rand(75, 3, 64, 64)), torch.arange(5).repeat(15)


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
