"""What ends a loan, and when: repayment, default or sale over 60 months, some loans being still open. The joint
chances are a softmax over causes and months and one slot for later; all of it stays in logarithms."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Loans(nn.Module):
    def __init__(self, numbers=24, kinds=64, hidden=128, causes=3, months=60):
        super().__init__()
        self.causes, self.months = causes, months
        self.kind = nn.Embedding(kinds, 16)
        self.norm = nn.BatchNorm1d(numbers)
        self.body = nn.Sequential(
            nn.Linear(numbers + 16, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.heads = nn.Linear(hidden, causes * months + 1)

    def forward(self, numbers, kind):
        h = self.body(torch.cat((self.norm(numbers), self.kind(kind)), -1))
        return F.log_softmax(self.heads(h).float(), -1)


def make_model():
    return Loans()


def make_batch():
    return {
        "numbers": torch.randn(256, 24),
        "kind": torch.randint(0, 64, (256,)),
        "month": torch.randint(0, 60, (256,)),
        "cause": torch.randint(0, 4, (256,)),
    }


def loss_fn(output, batch):
    month, cause = batch["month"], batch["cause"]
    seen = cause > 0
    at = ((cause - 1).clamp(min=0) * 60 + month)[:, None]
    of_event = output.gather(1, at).squeeze(1)
    joint, later = output[:, :-1].view(-1, 3, 60), output[:, -1:]
    after = torch.arange(60)[None, None] > month[:, None, None]
    still = joint.masked_fill(~after, -1e4).flatten(1)
    of_open = torch.logsumexp(torch.cat((still, later), 1), 1)
    return -torch.where(seen, of_event, of_open).mean()
