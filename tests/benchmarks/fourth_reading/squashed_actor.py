"""An actor whose actions are squashed by tanh, with a sigmoid for its spread (as Dreamer has it). Planted: the eps of
1e-8 in the logarithm of the squashing is added in 16 bits, where FP16 has none."""

import math

import torch
import torch.nn as nn


class Actor(nn.Module):
    def __init__(self, observation=64, width=256, actions=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(observation, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.mean = nn.Linear(width, actions)
        self.spread = nn.Linear(width, actions)

    def forward(self, observation):
        h = self.trunk(observation)
        mean, std = 5 * self.mean(h), 4 * torch.sigmoid(self.spread(h) / 2) + 0.1
        noise = torch.randn_like(mean)
        action = torch.tanh(mean + std * noise)
        density = -0.5 * noise * noise - torch.log(std) - 0.5 * math.log(2 * math.pi)
        density = density - torch.log(1 - action * action + 1e-8)  # planted: G204
        return action, density.sum(-1)


def make_model():
    return Actor()


def make_batch():
    return {"observation": torch.randn(256, 64), "goal": torch.rand(256, 8) * 2 - 1}


def loss_fn(output, batch):
    action, density = output
    value = -(action.float() - batch["goal"]).pow(2).sum(-1)
    return (0.1 * density - value).mean()
