"""A click model: impressions are counted per item in a buffer, and rare items are weighted up."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Clicks(nn.Module):
    def __init__(self, items=5000, users=2000, width=128):
        super().__init__()
        self.items = nn.Embedding(items, width)
        self.users = nn.Embedding(users, width)
        self.mlp = nn.Sequential(nn.Linear(2 * width, 256), nn.SiLU(), nn.Linear(256, 1))
        self.register_buffer("seen", torch.ones(items, dtype=torch.float16))

    def forward(self, user, item):
        self.seen.index_add_(0, item, torch.ones_like(item, dtype=torch.float16))  # planted: G220
        z = torch.cat([self.users(user), self.items(item)], -1)
        weight = 1 / self.seen[item].float()
        return self.mlp(z).squeeze(-1), weight


def make_model():
    return Clicks()


def make_batch():
    torch.manual_seed(0)
    return (torch.randint(0, 2000, (4096,)), torch.randint(0, 5000, (4096,)), torch.randint(0, 2, (4096,)).float())


def run(model, batch):
    return model(batch[0], batch[1])


def loss_fn(out, batch):
    logit, weight = out
    return F.binary_cross_entropy_with_logits(logit, batch[2], weight=weight)
