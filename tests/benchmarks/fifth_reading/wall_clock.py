"""Irregular clinical time series: GRU-D style decays with wall-clock minutes kept in half precision. Planted: minutes
of several days (over 2048) in FP16: differences of stamps are lost."""

import torch
import torch.nn as nn


class DecayCell(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.cell = nn.GRUCell(2 * dim, hidden)
        self.decay = nn.Linear(1, hidden)

    def forward(self, x, m, dt, h):
        h = h * torch.exp(-torch.relu(self.decay(dt)))
        return self.cell(torch.cat([x, m], -1), h)


class GRUD(nn.Module):
    def __init__(self, dim=24, hidden=64):
        super().__init__()
        self.cell = DecayCell(dim, hidden)
        self.head = nn.Linear(hidden, 1)
        self.hidden = hidden

    def forward(self, x, mask, minutes):
        clock = minutes.half()
        h = x.new_zeros(x.shape[0], self.hidden)
        for t in range(1, x.shape[1]):
            dt = (clock[:, t] - clock[:, t - 1]).to(x.dtype).unsqueeze(-1) / 60  # planted: G211
            h = self.cell(x[:, t] * mask[:, t], mask[:, t], dt, h)
        return self.head(h).squeeze(-1)


def make_model():
    return GRUD()


def make_batch():
    minutes = torch.cumsum(torch.randint(1, 400, (16, 30)), dim=1).float()
    return (torch.randn(16, 30, 24), torch.randint(0, 2, (16, 30, 24)).float(), minutes), torch.rand(16).round()


def loss_fn(output, batch):
    return nn.functional.binary_cross_entropy_with_logits(output, batch[1])
