"""A mixture of experts by hand, with a router in FP32, a balance loss and a loss of the router's logits. Planted:
the experts' rows are added into a tensor made in FP32 from the norm's output, while autocast leaves them in 16
bits."""

import torch
import torch.nn.functional as F
from torch import nn


class Experts(nn.Module):
    def __init__(self, width, inner, experts=8, top=2):
        super().__init__()
        self.top = top
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(experts)
        )

    def route(self, x):
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
            shares = logits.softmax(-1)
            weights, chosen = shares.topk(self.top, -1)
            weights = weights / weights.sum(-1, keepdim=True)
            spread = torch.logsumexp(logits, -1).pow(2).mean()
            load = F.one_hot(chosen, len(self.experts)).float().sum(1).mean(0)
            balance = (load * shares.mean(0)).sum() * len(self.experts)
        return weights, chosen, 1e-3 * spread + 1e-2 * balance

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, chosen, extra = self.route(flat)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            seen = expert(flat[rows])
            seen = seen * weights[rows, places, None].to(seen.dtype)
            out.index_add_(0, rows, seen)  # planted: G301
        return out.view_as(x), extra


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.experts = Experts(width, 4 * width)

    def forward(self, x):
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        y, extra = self.experts(self.second(x))
        return x + y, extra


class Router(nn.Module):
    def __init__(self, vocabulary=8192, width=256, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x, total = self.embed(ids), 0.0
        for block in self.blocks:
            x, extra = block(x)
            total = total + extra
        return self.head(x), total


def make_model():
    return Router()


def make_batch():
    ids = torch.randint(0, 8192, (8, 128))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    logits, extra = output
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()) + extra
