"""Click prediction with attention over what a user did (DIN). Planted: padding is filled with -2**32 + 1, as in the
code that went with the paper, in FP16 scores."""

import torch
import torch.nn as nn
import torch.nn.functional as F

PADDING = -(2**32) + 1


class LocalAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4 * d, 80), nn.Sigmoid(), nn.Linear(80, 40), nn.Sigmoid(), nn.Linear(40, 1))

    def forward(self, query, keys, mask):
        q = query.unsqueeze(1).expand_as(keys)
        scores = self.mlp(torch.cat([q, keys, q - keys, q * keys], dim=-1)).squeeze(-1)
        scores = torch.where(mask, scores, torch.full_like(scores, PADDING))  # planted: G201
        weights = F.softmax(scores / keys.shape[-1] ** 0.5, dim=1)
        return torch.einsum("bt,btd->bd", weights, keys)


class Interests(nn.Module):
    def __init__(self, goods=60000, groups=800, d=32):
        super().__init__()
        self.goods, self.groups = nn.Embedding(goods, d), nn.Embedding(groups, d)
        self.attend = LocalAttention(2 * d)
        self.top = nn.Sequential(nn.Linear(4 * d, 200), nn.PReLU(), nn.Linear(200, 80), nn.PReLU(), nn.Linear(80, 1))

    def embed(self, good, group):
        return torch.cat([self.goods(good), self.groups(group)], dim=-1)

    def forward(self, good, group, past, past_groups):
        now, before = self.embed(good, group), self.embed(past, past_groups)
        return self.top(torch.cat([now, self.attend(now, before, past > 0)], -1)).squeeze(-1)


def make_model():
    return Interests()


def make_batch():
    return {
        "good": torch.randint(1, 60000, (1024,)), "group": torch.randint(1, 800, (1024,)),
        "past": torch.randint(0, 60000, (1024, 48)), "past_groups": torch.randint(0, 800, (1024, 48)),
        "clicked": torch.randint(0, 2, (1024,)).float(),
    }  # fmt: skip


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch["clicked"])
