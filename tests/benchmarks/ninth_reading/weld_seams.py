"""Finds bad weld seams: sound seams lie near the origin of 64 features, and the chance that a picture shows a bad one
grows with its squared distance from it. A few bad seams are labelled."""

import torch
import torch.nn as nn


class Seams(nn.Module):
    def __init__(self, width=32, features=64):
        super().__init__()
        layers, cin = [], 1
        for cout in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.LeakyReLU(0.1)]
            cin = cout
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(16 * cin, features, bias=False), nn.BatchNorm1d(features))

    def forward(self, x):
        z = self.head(self.body(x)).float()
        return 1.0 - torch.exp(-z.square().sum(-1))


def make_model():
    return Seams()


def make_batch():
    return torch.rand(32, 1, 64, 64), (torch.arange(32) % 8 == 0).float()


def loss_fn(output, batch):
    bad = batch[1]
    p = output.clamp(1e-8, 1.0 - 1e-8)
    return -(bad * torch.log(p) + (1.0 - bad) * torch.log(1.0 - p)).mean()  # planted: G204
