"""A ranker of advertisements, weights in BF16 to save memory, histories as bags of ids. Planted: a weighted
EmbeddingBag in BF16, which has no kernel for the gradient of its per-sample weights."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class BagTower(nn.Module):
    def __init__(self, items=40000, dim=64, dense=13, width=256):
        super().__init__()
        half = {"dtype": torch.bfloat16}
        self.items = nn.EmbeddingBag(items, dim, mode="sum", **half)
        self.importance = nn.Embedding(items, 1, **half)
        self.dense = nn.Linear(dense, dim, **half)
        self.top = nn.Sequential(
            nn.Linear(2 * dim, width, **half), nn.ReLU(), nn.Linear(width, width, **half), nn.ReLU()
        )
        self.click = nn.Linear(width, 8, **half)

    def forward(self, history, numbers):
        weight = torch.sigmoid(self.importance(history)).squeeze(-1)
        bag = self.items(history, per_sample_weights=weight)  # planted: G402|G401
        h = torch.cat([bag, self.dense(numbers.to(bag.dtype))], 1)
        return self.click(self.top(h)).float()


def make_model():
    return BagTower()


def make_batch():
    return (torch.randint(0, 40000, (512, 24)), torch.rand(512, 13)), torch.randint(0, 2, (512, 8)).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
