"""Advantage actor-critic with generalised advantages, by a loop from the end backwards; episodes may end within."""

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
        return self.policy(h).float(), self.value(h).squeeze(-1).float()


def advantages(rewards, values, ends, gamma=0.95, smooth=0.9):
    out, running = [], torch.zeros_like(values[:, 0])
    ahead = torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        goes_on = 1.0 - ends[:, t]
        surprise = rewards[:, t] + gamma * ahead * goes_on - values[:, t]
        running = surprise + gamma * smooth * goes_on * running
        ahead = values[:, t]
        out.append(running)
    return torch.stack(out[::-1], 1)


def make_model():
    return ActorCritic()


def make_batch():
    rewards, ends = (torch.rand(8, 64) < 0.2).float(), (torch.rand(8, 64) < 0.02).float()
    allowed = torch.rand(8, 64, 8) < 0.7
    allowed[..., 0] = True
    actions = torch.multinomial(allowed.flatten(0, 1).float(), 1).view(8, 64)
    return torch.randn(8, 64, 32), (actions, rewards, ends, allowed)


def loss_fn(output, batch):
    logits, values = output
    actions, rewards, ends, allowed = batch[1]
    with torch.no_grad():
        gain = advantages(rewards, values, ends)
        target = gain + values
        gain = (gain - gain.mean()) / (gain.std() + 1e-6)
    log_prob = F.log_softmax(logits.masked_fill(~allowed, -1e8), -1)
    chosen = log_prob.gather(-1, actions[..., None]).squeeze(-1)
    entropy = -(log_prob.exp() * log_prob).sum(-1).mean()
    return -(chosen * gain).mean() + 0.5 * F.smooth_l1_loss(values, target) - 0.01 * entropy
