"""A parametric t-SNE: a network maps to the plane, neighbours' shares come from the data. Planted: p log(p / q) with a
p whose diagonal and far pairs are exactly zero: 0 * -inf is NaN in any format."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def student_shares(z):
    square = (z[:, None] - z[None]).pow(2).sum(-1)
    kernel = 1 / (1 + square)
    kernel = kernel * (1 - torch.eye(z.shape[0], device=z.device))
    return kernel / kernel.sum()


class Map(nn.Module):
    def __init__(self, inputs=784):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((inputs, 512), (512, 512), (512, 2048), (2048, 2)))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return student_shares(self.layers[-1](x).float())


def make_model():
    return Map()


def make_batch():
    x = torch.rand(256, 784)
    square = torch.cdist(x, x).square()
    square.fill_diagonal_(float("inf"))
    p = torch.softmax(-square / 0.02, dim=1)
    p = (p + p.t()) / (2 * p.shape[0])
    return x, p


def loss_fn(output, batch):
    p = batch[1]
    q = output.clamp(min=1e-12)
    return (p * torch.log(p / q)).sum()  # planted: G204
