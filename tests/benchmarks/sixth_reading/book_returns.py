"""Predicting returns from order book snapshots: GRU over features that are standardised in the forward."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Standardise(nn.Module):
    def __init__(self, momentum=0.01):
        super().__init__()
        self.momentum = momentum

    def forward(self, x):
        centred = x - x.mean(dim=1, keepdim=True)
        return centred / x.std(dim=1, keepdim=True)  # planted: G205


class OrderBook(nn.Module):
    def __init__(self, features=40, hidden=256, horizon=8):
        super().__init__()
        self.scale = Standardise()
        self.lift = nn.Linear(features, hidden)
        self.rnn = nn.GRU(hidden, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, book):
        h, _ = self.rnn(F.relu(self.lift(self.scale(book))))
        return self.head(h[:, -1])


def make_model():
    return OrderBook()


def make_batch():
    torch.manual_seed(0)
    book = torch.randn(64, 128, 40)
    book[..., -1] = 1.0
    return book, torch.randn(64, 8)


def loss_fn(out, batch):
    return F.huber_loss(out, batch[1])
