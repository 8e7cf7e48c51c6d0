"""A deterministic policy gradient (DDPG) that normalises observations by their running moments. Planted: before the
first batch is merged the count is zero, and m2 / count is 0 / 0: the first actions are NaN in any format."""

import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F


class Running(nn.Module):
    """Welford's moments, merged by batches."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("m2", torch.zeros(size))

    @torch.no_grad()
    def update(self, x):
        n = x.shape[0]
        delta = x.mean(0) - self.mean
        total = self.count + n
        self.m2 += ((x - x.mean(0)) ** 2).sum(0) + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count.copy_(total)

    def forward(self, x):
        var = self.m2 / self.count  # planted: G205
        out = ((x - self.mean) / torch.sqrt(var + 1e-8)).clamp(-5, 5)
        self.update(x)
        return out


def mlp(*sizes):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    def __init__(self, obs=48, act=8, width=256):
        super().__init__()
        self.norm = Running(obs)
        self.actor = mlp(obs, width, width, act)
        self.critic = mlp(obs + act, width, width, 1)

    def forward(self, obs, action):
        x = self.norm(obs)
        policy = torch.tanh(self.actor(x))
        q = self.critic(torch.cat([x, action], -1)).squeeze(-1)
        pi = self.critic(torch.cat([x, policy], -1)).squeeze(-1)
        return q, pi


def make_model():
    return Agent()


def make_batch():
    return (torch.randn(256, 48) * 3 + 1, torch.rand(256, 8) * 2 - 1), torch.randn(256)


def loss_fn(output, batch):
    q, pi = output
    return F.mse_loss(q, batch[1]) - pi.mean()
