"""Advantage actor-critic on long episodes of one machine: discounted returns of 2,048 steps at once, by a cumulative
sum in place of a loop."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ActorCritic(nn.Module):
    def __init__(self, seen=32, hidden=128, actions=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(seen, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.policy = nn.Linear(hidden, actions)
        self.value = nn.Linear(hidden, 1)

    def forward(self, seen):
        h = self.body(seen)
        return self.policy(h), self.value(h).squeeze(-1)


def returns_to_go(rewards, gamma=0.95):
    """What is still to come from each step on, discounted; rewards (batch, steps)."""
    steps = rewards.shape[-1]
    discount = gamma ** torch.arange(steps, device=rewards.device, dtype=rewards.dtype)
    future = (rewards * discount).flip(-1).cumsum(-1).flip(-1)
    return future / discount  # planted: G205


def make_model():
    return ActorCritic()


def make_batch():
    rewards = (torch.rand(8, 2048) < 0.2).float()
    return torch.randn(8, 2048, 32), (torch.randint(0, 8, (8, 2048)), rewards)


def loss_fn(output, batch):
    logits, value = output
    actions, rewards = batch[1]
    value = value.float()
    returns = returns_to_go(rewards)
    gain = (returns - value).detach()
    gain = gain / (gain.std() + 1e-5)
    log_prob = F.log_softmax(logits.float(), -1)
    chosen = log_prob.gather(-1, actions[..., None]).squeeze(-1)
    entropy = -(log_prob.exp() * log_prob).sum(-1).mean()
    return -(chosen * gain).mean() + 0.5 * F.mse_loss(value, returns) - 0.01 * entropy
