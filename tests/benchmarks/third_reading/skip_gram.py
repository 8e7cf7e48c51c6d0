"""Word vectors by skip-gram with negative samples, scored after a projection. Planted: the logarithm of a sigmoid in
16 bits, which underflows in FP16 for scores under -17."""

import torch
from torch import nn


class SkipGram(nn.Module):
    def __init__(self, words=30000, width=256, out=128):
        super().__init__()
        self.inner = nn.Embedding(words, width)
        self.outer = nn.Embedding(words, width)
        self.project = nn.Linear(width, out, bias=False)

    def forward(self, center, context, negative):
        v = self.project(self.inner(center))
        u = self.project(self.outer(context))
        n = self.project(self.outer(negative))
        good = torch.einsum("bd,bd->b", v, u)
        bad = torch.einsum("bd,bkd->bk", v, n)
        return good, bad


def loss_fn(output, batch):
    good, bad = output
    return -(torch.log(torch.sigmoid(good)) + torch.log(torch.sigmoid(-bad)).sum(1)).mean()  # planted: G204


def make_model():
    return SkipGram()


def make_batch():
    return {
        "center": torch.randint(0, 30000, (4096,)),
        "context": torch.randint(0, 30000, (4096,)),
        "negative": torch.randint(0, 30000, (4096, 16)),
    }
