"""A tagger: BiLSTM and a linear-chain CRF. Planted: the forward algorithm adds exponentials without their maximum."""

import torch
from torch import nn


class ChainTagger(nn.Module):
    def __init__(self, words=12000, tags=24, width=128):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.emit = nn.Linear(2 * width, tags)
        self.transitions = nn.Parameter(0.1 * torch.randn(tags, tags))

    def log_partition(self, emissions):
        alpha = emissions[:, 0]
        for t in range(1, emissions.size(1)):
            scores = alpha.unsqueeze(2) + self.transitions + emissions[:, t].unsqueeze(1)
            alpha = torch.log(torch.exp(scores).sum(1))  # planted: G203|G204
        return torch.logsumexp(alpha, dim=1)

    def score(self, emissions, tags):
        found = emissions.gather(2, tags.unsqueeze(2)).squeeze(2).sum(1)
        return found + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)

    def forward(self, words, tags):
        hidden, _ = self.lstm(self.words(words))
        emissions = self.emit(hidden)
        return (self.log_partition(emissions) - self.score(emissions, tags)).mean()


def make_model():
    return ChainTagger()


def make_batch():
    return {"words": torch.randint(0, 12000, (32, 24)), "tags": torch.randint(0, 24, (32, 24))}


def loss_fn(output, batch):
    return output
