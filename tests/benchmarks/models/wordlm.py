"""A word-level language model: two LSTM layers, 33278 words as in WikiText-2."""

import torch
import torch.nn.functional as F
from torch import nn

WORDS = 33278


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 650)
        self.drop = nn.Dropout(0.1)
        self.rnn = nn.LSTM(650, 650, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(650, WORDS)

    def forward(self, ids):
        y, _ = self.rnn(self.drop(self.embed(ids)))
        return self.head(self.drop(y))


def make_model():
    return Net()


def make_batch():
    ids = torch.randint(0, WORDS, (64, 71))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
