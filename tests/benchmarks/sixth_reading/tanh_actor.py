"""Careful: soft actor-critic's squashed Gaussian with the stable log-determinant."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Actor(nn.Module):
    def __init__(self, obs=64, act=16, width=512):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(obs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mu, self.log_std = nn.Linear(width, act), nn.Linear(width, act)
        self.q = nn.Sequential(nn.Linear(obs + act, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, obs):
        h = self.trunk(obs)
        mu, log_std = self.mu(h), self.log_std(h).clamp(-5, 2)
        noise = torch.randn_like(mu)
        u = mu + log_std.exp() * noise
        logp = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        logp = logp - (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        a = torch.tanh(u)
        return logp, self.q(torch.cat([obs, a], -1)).squeeze(-1)


def make_model():
    return Actor()


def make_batch():
    torch.manual_seed(0)
    return (torch.randn(1024, 64),)


def loss_fn(out, batch):
    logp, q = out
    return (0.2 * logp - q).mean()
