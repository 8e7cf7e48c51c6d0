"""BiLSTM-CRF tagger; the partition function by the forward algorithm. Planted: forward algorithm in probabilities:
grows or dies over the steps."""

import torch
import torch.nn as nn


class CRF(nn.Module):
    def __init__(self, tags):
        super().__init__()
        self.trans = nn.Parameter(torch.randn(tags, tags) * 0.1)
        self.start = nn.Parameter(torch.zeros(tags))

    def partition(self, emissions):
        alpha = (self.start + emissions[:, 0]).exp()
        step = self.trans.exp()
        for t in range(1, emissions.shape[1]):
            alpha = (alpha @ step) * emissions[:, t].exp()  # planted: G203
        return alpha.sum(-1).log()

    def score(self, emissions, tags):
        s = self.start[tags[:, 0]] + emissions[:, 0].gather(1, tags[:, :1]).squeeze(1)
        picked = emissions[:, 1:].gather(2, tags[:, 1:, None]).squeeze(2)
        return s + (picked + self.trans[tags[:, :-1], tags[:, 1:]]).sum(1)

    def forward(self, emissions, tags):
        return (self.partition(emissions) - self.score(emissions, tags)).mean()


class Tagger(nn.Module):
    def __init__(self, vocab=2000, dim=64, hidden=128, tags=9):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.lstm = nn.LSTM(dim, hidden // 2, batch_first=True, bidirectional=True)
        self.proj = nn.Linear(hidden, tags)
        self.crf = CRF(tags)

    def forward(self, words, tags):
        h, _ = self.lstm(self.emb(words))
        return self.crf(self.proj(h), tags)


def make_model():
    return Tagger()


def make_batch():
    return (torch.randint(0, 2000, (16, 40)), torch.randint(0, 9, (16, 40))), None


def loss_fn(output, batch):
    return output
