"""A word language model of two LSTM layers (1,024 wide), batch 128 x 128."""

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH = 32000, 1024


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.drop = nn.Dropout(0.2)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids):
        hidden, _ = self.lstm(self.drop(self.embed(ids)))
        return self.head(self.drop(hidden))


def make_model():
    return LanguageModel()


def make_batch():
    ids = torch.randint(0, VOCAB, (128, 128))
    return ids, ids


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
