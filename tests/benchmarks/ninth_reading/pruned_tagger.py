"""A tagger whose units are gated by hard concrete variables: noise is drawn in FP32 and kept off its ends, and the
expected number of open gates is part of the loss."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Gate(nn.Module):
    def __init__(self, units, heat=2.0 / 3.0, low=-0.1, high=1.1):
        super().__init__()
        self.heat, self.low, self.high = heat, low, high
        self.opened = nn.Parameter(torch.full((units,), 2.0))

    def forward(self, x):
        u = torch.rand(x.shape[0], self.opened.shape[0], device=x.device, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + self.opened) / self.heat)
        z = (s * (self.high - self.low) + self.low).clamp(0.0, 1.0)
        return x * z[:, None].to(x.dtype)

    def expected(self):
        return torch.sigmoid(self.opened - self.heat * math.log(-self.low / self.high)).sum()


class Tagger(nn.Module):
    def __init__(self, words=8192, dim=128, hidden=256, tags=48):
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.lstm = nn.LSTM(dim, hidden // 2, batch_first=True, bidirectional=True)
        self.gate = Gate(hidden)
        self.head = nn.Linear(hidden, tags)

    def forward(self, words):
        h, _ = self.lstm(self.embed(words))
        return self.head(self.gate(h)), self.gate.expected()


def make_model():
    return Tagger()


def make_batch():
    return torch.randint(0, 8192, (16, 64)), torch.randint(0, 48, (16, 64))


def loss_fn(output, batch):
    logits, opened = output
    return F.cross_entropy(logits.float().flatten(0, 1), batch[1].flatten()) + 1e-4 * opened
