"""SAC with the change of variables in its stable form (Spinning Up)."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Normal


class Actor(nn.Module):
    def __init__(self, obs, act):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(obs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mu, self.log_std = nn.Linear(256, act), nn.Linear(256, act)

    def forward(self, o):
        h = self.trunk(o)
        log_std = -5 + 0.5 * (2 + 5) * (torch.tanh(self.log_std(h)) + 1)
        dist = Normal(self.mu(h), log_std.exp())
        u = dist.rsample()
        logp = dist.log_prob(u).sum(-1) - (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        return torch.tanh(u), logp


class SoftActorCritic(nn.Module):
    def __init__(self, obs=16, act=8):
        super().__init__()
        self.actor = Actor(obs, act)
        self.q = nn.Sequential(nn.Linear(obs + act, 256), nn.ReLU(), nn.Linear(256, 1))
        self.log_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, o):
        a, logp = self.actor(o)
        q = self.q(torch.cat([o, a], -1)).squeeze(-1)
        alpha = self.log_alpha.exp().detach()
        return (alpha * logp - q).mean() - (self.log_alpha * (logp + 8.0).detach()).mean()


def make_model():
    return SoftActorCritic()


def make_batch():
    return torch.randn(256, 16), None


def loss_fn(output, batch):
    return output
