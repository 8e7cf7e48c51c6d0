"""A click predictor: 26 embedded categories and 13 numbers into an MLP 4,096 wide, batch 8,192."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, CATEGORIES, NUMBERS, ROWS, EMBEDDED, WIDTH, DEPTH = 8192, 26, 13, 20000, 64, 4096, 4


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, EMBEDDED) for _ in range(CATEGORIES))
        layers, inputs = [], CATEGORIES * EMBEDDED + NUMBERS
        for _ in range(DEPTH):
            layers += [nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.1)]
            inputs = WIDTH
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, ids, numbers):
        embedded = [table(ids[:, index]) for index, table in enumerate(self.tables)]
        return self.layers(torch.cat([*embedded, numbers], dim=1)).squeeze(1)


def make_model():
    return Predictor()


def make_batch():
    ids = torch.randint(0, ROWS, (BATCH, CATEGORIES))
    return (ids, torch.randn(BATCH, NUMBERS)), torch.randint(0, 2, (BATCH,)).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
