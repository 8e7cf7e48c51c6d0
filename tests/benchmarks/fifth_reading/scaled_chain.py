"""Neural hidden Markov model with per-step scaling; the scale itself is never guarded. Planted: log of a sum of
likelihoods that may underflow."""

import torch
from torch import nn


class NeuralHMM(nn.Module):
    def __init__(self, states=16, obs=32, hidden=64):
        super().__init__()
        self.trans = nn.Parameter(torch.randn(states, states))
        self.emit = nn.Sequential(nn.Linear(obs, hidden), nn.Tanh(), nn.Linear(hidden, states))

    def forward(self, y):
        a = torch.softmax(self.trans, dim=-1)
        like = torch.sigmoid(self.emit(y)) ** 8
        alpha = like[:, 0] / like.shape[-1]
        total = 0.0
        for t in range(1, y.shape[1]):
            scale = alpha.sum(-1, keepdim=True)
            total = total + scale.log().squeeze(-1)  # planted: G204
            alpha = ((alpha / scale) @ a) * like[:, t]
        return -(total + alpha.sum(-1).log()).mean()


def make_model():
    return NeuralHMM()


def make_batch():
    return torch.randn(32, 25, 32), None


def loss_fn(output, batch):
    return output
