"""Neural Hawkes process: log-likelihood of event intensities. Planted: log of a relu that is zero."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Hawkes(nn.Module):
    def __init__(self, kinds=16, dim=64):
        super().__init__()
        self.emb = nn.Embedding(kinds, dim)
        self.rnn = nn.GRU(dim + 1, dim, batch_first=True)
        self.base, self.decay = nn.Linear(dim, kinds), nn.Linear(dim, kinds)

    def intensity(self, h, dt):
        return F.relu(self.base(h) + self.decay(h) * dt.unsqueeze(-1))

    def forward(self, kind, dt):
        h, _ = self.rnn(torch.cat([self.emb(kind), dt.unsqueeze(-1)], -1))
        lam = self.intensity(h[:, :-1], dt[:, 1:])
        event = torch.log(lam.gather(-1, kind[:, 1:, None]).squeeze(-1))  # planted: G204
        return (lam.sum(-1) * dt[:, 1:] - event).mean()


def make_model():
    return Hawkes()


def make_batch():
    return (torch.randint(0, 16, (32, 20)), torch.rand(32, 20)), None


def loss_fn(output, batch):
    return output
