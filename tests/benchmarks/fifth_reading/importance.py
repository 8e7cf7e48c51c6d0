"""Contextual bandit: importance weights by a product of probabilities over a trajectory. Planted: product of 200
probabilities: underflows to zero, 0 / 0."""

import torch
import torch.nn as nn


class OffPolicy(nn.Module):
    def __init__(self, obs=16, act=8):
        super().__init__()
        self.pi = nn.Sequential(nn.Linear(obs, 128), nn.Tanh(), nn.Linear(128, act))

    def forward(self, obs, action, behaviour):
        p = self.pi(obs).softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return p.prod(dim=1) / behaviour.prod(dim=1)  # planted: G205


def make_model():
    return OffPolicy()


def make_batch():
    return (torch.randn(32, 200, 16), torch.randint(0, 8, (32, 200)), torch.rand(32, 200) * 0.2 + 0.05), torch.randn(32)


def loss_fn(output, batch):
    return -(output * batch[1]).mean()
