"""A click predictor: 20 tables of embeddings read by bags, products of their pairs, wide MLPs; 16384 rows."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

BATCH, NUMBERS, TABLES, ROWS, WIDTH, BAG = 16384, 13, 20, 200_000, 128, 4


def mlp(*widths):
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(TABLES))
        self.bottom = mlp(NUMBERS, 512, 256, WIDTH)
        features = TABLES + 1
        self.top = mlp(WIDTH + features * (features - 1) // 2, 2048, 2048, 1024, 512)
        self.out = nn.Linear(512, 1)
        self.register_buffer("pairs", torch.tril_indices(features, features, -1), persistent=False)

    def forward(self, numbers, ids):
        dense = self.bottom(torch.log1p(numbers))
        bags = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        stacked = torch.stack([dense, *bags], dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.out(self.top(torch.cat([dense, products], dim=1))).squeeze(1)


def make_model():
    return Recommender()


def make_batch():
    inputs = torch.rand(BATCH, NUMBERS), torch.randint(0, ROWS, (BATCH, TABLES, BAG))
    return inputs, torch.randint(0, 2, (BATCH,)).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
