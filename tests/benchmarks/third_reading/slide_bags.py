"""Whole slides as bags of patch features with gated attention (multiple instance learning). Planted: three coordinates
are joined to 768 features, so that the first layer reads 771."""

import torch
from torch import nn


class Slides(nn.Module):
    def __init__(self, features=768, width=512, hidden=256, classes=4):
        super().__init__()
        self.reduce = nn.Linear(features + 3, width)
        self.v, self.u = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.w = nn.Linear(hidden, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, patches, where):
        h = torch.relu(self.reduce(torch.cat([patches, where], -1)))  # planted: G101
        gate = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h)))
        share = torch.softmax(gate.float(), dim=1)
        return self.head((share * h).sum(1))


def make_model():
    return Slides()


def make_batch():
    return {"patches": torch.randn(8, 8192, 768), "where": torch.rand(8, 8192, 3), "label": torch.randint(0, 4, (8,))}


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch["label"])
