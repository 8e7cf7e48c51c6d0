"""A soft decision forest over features of a table. Planted: the share of samples that reach a leaf is a product of
six sigmoids in 16 bits, clamped to 1e-8 before its logarithm."""

import torch
from torch import nn


class Forest(nn.Module):
    def __init__(self, inputs=32, width=256, trees=16, depth=10, classes=16):
        super().__init__()
        self.trees, self.depth = trees, depth
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.choices = nn.Linear(width, trees * (2**depth - 1))
        self.leaves = nn.Parameter(torch.randn(trees, 2**depth, classes))

    def forward(self, x):
        right = torch.sigmoid(8 * self.choices(self.net(x)).view(len(x), self.trees, -1))
        reached = torch.ones_like(right[..., :1])
        for level in range(self.depth):
            here = right[..., 2**level - 1 : 2 ** (level + 1) - 1]
            reached = torch.stack([reached * (1 - here), reached * here], dim=-1).flatten(2)
        log_reached = torch.log(reached.clamp(min=1e-8))  # planted: G204
        votes = log_reached.unsqueeze(-1) + torch.log_softmax(self.leaves, dim=-1)
        return torch.logsumexp(votes, dim=2).mean(1)


def make_model():
    return Forest(inputs=32, depth=6)


def make_batch():
    return {"x": 2 * torch.randn(128, 32), "label": torch.randint(0, 16, (128,))}


def loss_fn(output, batch):
    return nn.functional.nll_loss(output, batch["label"])
