"""Recurrent Q-learning with returns squeezed by h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x. Planted: h's inverse
takes 1 off a root near 1 in 16 bits, and divides what is left by 2 eps."""

import torch
import torch.nn as nn
import torch.nn.functional as F

EPS = 1e-3


def squeeze(x):
    return torch.sign(x) * (torch.sqrt(x.abs() + 1) - 1) + EPS * x


def expand(x):
    root = (torch.sqrt(1 + 4 * EPS * (x.abs() + 1 + EPS)) - 1) / (2 * EPS)  # planted: G218
    return torch.sign(x) * (root * root - 1)


class Recurrent(nn.Module):
    def __init__(self, observation=96, width=256, actions=16):
        super().__init__()
        self.first = nn.Linear(observation, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.value, self.advantage = nn.Linear(width, 1), nn.Linear(width, actions)

    def forward(self, observation):
        h, _ = self.cell(F.relu(self.first(observation)))
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(-1, keepdim=True)


class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = Recurrent()

    def forward(self, observation, action, reward):
        q = self.online(observation)
        chosen = q[:, :-1].gather(-1, action[:, :-1, None]).squeeze(-1)
        following = expand(q[:, 1:].amax(-1)).detach()
        return chosen, squeeze(reward[:, :-1] + 0.997 * following)


def make_model():
    return Learner()


def make_batch():
    return {
        "observation": torch.randn(32, 40, 96), "action": torch.randint(0, 16, (32, 40)), "reward": torch.randn(32, 40)
    }  # fmt: skip


def loss_fn(output, batch):
    chosen, target = output
    return F.smooth_l1_loss(chosen.float(), target.float())
