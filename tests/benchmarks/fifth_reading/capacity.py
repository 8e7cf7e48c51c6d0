"""Switch Transformer feed-forward with capacity. Planted: counters beyond 256 in BF16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Router(nn.Module):
    def __init__(self, dim, experts):
        super().__init__()
        self.wg = nn.Linear(dim, experts, bias=False)

    def forward(self, x, capacity):
        gates = F.softmax(self.wg(x).float(), dim=-1)
        prob, expert = gates.max(dim=-1)
        mask = F.one_hot(expert, gates.shape[-1]).bfloat16()
        rank = torch.cumsum(mask, dim=0, dtype=torch.bfloat16) * mask  # planted: G217
        keep = (rank <= capacity) * mask
        balance = (gates.mean(0) * mask.float().mean(0)).sum() * gates.shape[-1]
        return expert, prob * keep.sum(-1), balance


class SwitchFF(nn.Module):
    def __init__(self, dim=128, experts=4, factor=1.25):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)) for _ in range(experts)
        )
        self.router = Router(dim, experts)
        self.factor = factor

    def forward(self, x):
        flat = x.flatten(0, 1)
        capacity = int(self.factor * flat.shape[0] / len(self.experts))
        expert, weight, balance = self.router(flat, capacity)
        out = torch.zeros_like(flat)
        for i, ff in enumerate(self.experts):
            out = out + ff(flat) * (weight * (expert == i))[:, None]
        return x + out.view_as(x), balance


class Net(nn.Module):
    def __init__(self, vocab=1000, dim=128):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.moe = SwitchFF(dim)
        self.out = nn.Linear(dim, vocab)

    def forward(self, ids):
        h, balance = self.moe(self.emb(ids))
        return self.out(h), balance


def make_model():
    return Net()


def make_batch():
    ids = torch.randint(0, 1000, (8, 256))
    return ids, ids


def loss_fn(output, batch):
    logits, balance = output
    return F.cross_entropy(logits.transpose(1, 2), batch[1]) + 0.01 * balance
