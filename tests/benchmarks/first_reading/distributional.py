"""Distributional Q-learning (C51) with a dueling network. Planted: the logarithm of a softmax, which is -inf where
the softmax is zero, and a last layer of 51 atoms for 18 actions, whose size is no multiple of 8."""

import torch
from torch import nn

ATOMS, ACTIONS, LOW, HIGH, GAMMA = 51, 18, -10.0, 10.0, 0.99


class Rainbow(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("support", torch.linspace(LOW, HIGH, ATOMS))
        self.body = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.value = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 56))
        self.advantage = nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, ACTIONS * ATOMS))

    def forward(self, frames):
        h = self.body(frames / 255.0)
        value = self.value(h)[:, None, :ATOMS]
        advantage = self.advantage(h).view(-1, ACTIONS, ATOMS)  # planted: G102
        return (value + advantage - advantage.mean(1, keepdim=True)).softmax(-1)


def make_model():
    return Rainbow()


def make_batch():
    frames = torch.randint(0, 256, (512, 4, 84, 84)).float()
    rewards = torch.randint(-1, 2, (512,)).float()
    target = torch.softmax(torch.randn(512, ATOMS), -1)
    return frames, (torch.randint(0, ACTIONS, (512,)), rewards, (torch.rand(512) > 0.1).float(), target)


def project(target, rewards, alive, support):
    """The target distribution after one step, on the atoms."""
    step = (HIGH - LOW) / (ATOMS - 1)
    places = (rewards[:, None] + GAMMA * alive[:, None] * support).clamp(LOW, HIGH)
    place = (places - LOW) / step
    shares = (1 - (place[:, None, :] - torch.arange(ATOMS, device=place.device)[None, :, None]).abs()).clamp(0, 1)
    return (shares * target[:, None, :]).sum(-1)


def loss_fn(probabilities, batch):
    actions, rewards, alive, target = batch[1]
    support = torch.linspace(LOW, HIGH, ATOMS, device=rewards.device)
    wanted = project(target, rewards, alive, support)
    chosen = probabilities[torch.arange(len(actions), device=actions.device), actions]
    return -(wanted * torch.log(chosen)).sum(-1).mean()  # planted: G204
