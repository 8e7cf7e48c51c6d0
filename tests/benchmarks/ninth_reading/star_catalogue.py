"""A masked autoregressive flow over 12 measured quantities of stars, six of which are fractions that go through a
logit with a margin; the scales are bounded."""

import math

import torch
import torch.nn as nn


class MaskedLinear(nn.Linear):
    def __init__(self, mask):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class Autoregressive(nn.Module):
    def __init__(self, size=12, hidden=96, flip=False):
        super().__init__()
        order = torch.arange(size)
        if flip:
            order = order.flip(0)
        inner = torch.arange(hidden) % (size - 1)
        self.first = MaskedLinear((inner[:, None] >= order[None]).float())
        self.second = MaskedLinear((inner[:, None] >= inner[None]).float())
        self.last = MaskedLinear((order.repeat(2)[:, None] > inner[None]).float())
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        h = torch.relu(self.second(torch.relu(self.first(x))))
        shift, log_scale = self.last(h).float().chunk(2, -1)
        log_scale = 2.0 * torch.tanh(log_scale / 2.0)
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(-1)


class Flow(nn.Module):
    def __init__(self, size=12, depth=4, margin=1e-3):
        super().__init__()
        self.margin = margin
        self.layers = nn.ModuleList(Autoregressive(size, flip=bool(i % 2)) for i in range(depth))

    def forward(self, fractions, others):
        p = self.margin + (1 - 2 * self.margin) * fractions
        logit = torch.log(p) - torch.log1p(-p)
        gained = -(torch.log(p) + torch.log1p(-p)).sum(-1) + p.shape[-1] * math.log(1 - 2 * self.margin)
        x = torch.cat((logit, others), -1)
        for layer in self.layers:
            x, more = layer(x)
            gained = gained + more
        prior = -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
        return -(prior + gained)


def make_model():
    return Flow()


def make_batch():
    return {"fractions": torch.rand(256, 6), "others": torch.randn(256, 6)}


def loss_fn(output, batch):
    return output.mean()
