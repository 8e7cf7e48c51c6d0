"""A neural hidden Markov model of sentences; everything in logarithms, by logsumexp. Careful."""

import torch
import torch.nn.functional as F
from torch import nn


class HiddenChain(nn.Module):
    def __init__(self, states=64, words=8000, width=128):
        super().__init__()
        self.states = nn.Parameter(torch.randn(states, width) * width**-0.5)
        self.step = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, states))
        self.emit = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, words))
        self.start = nn.Parameter(torch.zeros(states))

    def forward(self, ids):
        step = F.log_softmax(self.step(self.states), -1)
        emit = F.log_softmax(self.emit(self.states), -1)
        seen = emit.t()[ids]
        alpha = F.log_softmax(self.start, 0) + seen[:, 0]
        for t in range(1, ids.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + step, 1) + seen[:, t]
        return torch.logsumexp(alpha, 1)


def make_model():
    return HiddenChain()


def make_batch():
    return {"ids": torch.randint(0, 8000, (64, 20))}


def loss_fn(likelihood, batch):
    return -likelihood.mean() / batch["ids"].shape[1]
