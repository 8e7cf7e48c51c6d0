"""Soft actor-critic: actor loss with tanh-squashed Gaussian. Planted: log of zero: tanh saturates."""

import math

import torch
import torch.nn as nn


def mlp(sizes, act=nn.ReLU):
    layers = []
    for j in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[j], sizes[j + 1])]
        if j < len(sizes) - 2:
            layers += [act()]
    return nn.Sequential(*layers)


class Actor(nn.Module):
    LOG_STD = (-20, 2)

    def __init__(self, obs, act):
        super().__init__()
        self.net = mlp([obs, 256, 256, 2 * act])

    def forward(self, o, noise):
        mu, log_std = self.net(o).chunk(2, -1)
        std = log_std.clamp(*self.LOG_STD).exp()
        u = mu + std * noise
        a = torch.tanh(u)
        logp = (-0.5 * noise.pow(2) - log_std.clamp(*self.LOG_STD) - 0.5 * math.log(2 * math.pi)).sum(-1)
        logp = logp - (1 - a.pow(2)).log().sum(-1)  # planted: G204
        return a, logp


class SAC(nn.Module):
    def __init__(self, obs=24, act=8, alpha=0.2):
        super().__init__()
        self.alpha = alpha
        self.actor = Actor(obs, act)
        self.q1, self.q2 = mlp([obs + act, 256, 256, 1]), mlp([obs + act, 256, 256, 1])

    def forward(self, obs, noise):
        a, logp = self.actor(obs, noise)
        x = torch.cat([obs, a], -1)
        q = torch.min(self.q1(x), self.q2(x)).squeeze(-1)
        return (self.alpha * logp - q).mean()


def make_model():
    return SAC()


def make_batch():
    return (torch.randn(256, 24), torch.randn(256, 8)), None


def loss_fn(output, batch):
    return output
