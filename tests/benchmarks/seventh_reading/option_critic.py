"""Options in reinforcement learning: a policy over options, each with its own actions and terminations. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Options(nn.Module):
    def __init__(self, obs=64, options=8, actions=16, hidden=256):
        super().__init__()
        self.options, self.actions = options, actions
        self.body = nn.Sequential(nn.Linear(obs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.values, self.stop = nn.Linear(hidden, options), nn.Linear(hidden, options)
        self.policy = nn.Linear(hidden, options * actions)

    def forward(self, obs, allowed):
        h = self.body(obs)
        logits = self.policy(h).view(-1, self.options, self.actions).float()
        logits = logits.masked_fill(~allowed[:, None], -1e9)
        blocked = torch.zeros_like(logits).masked_fill(~allowed[:, None], float("-inf"))
        best = (logits + blocked).argmax(-1)
        return self.values(h).float(), self.stop(h).float(), logits, best


def make_model():
    return Options()


def make_batch():
    allowed = torch.rand(256, 16) > 0.3
    allowed[:, 0] = True
    action = torch.zeros(256, 8, dtype=torch.long)
    return (torch.randn(256, 64), allowed), (action, torch.randn(256, 8))


def loss_fn(output, batch):
    values, stop, logits, _ = output
    action, returns = batch[1]
    advantage = (returns - values).detach()
    log_prob = F.log_softmax(logits, -1).gather(-1, action[..., None]).squeeze(-1)
    spread = advantage.std().clamp(min=1e-6)
    actor = -(log_prob * (advantage - advantage.mean()) / spread).mean()
    ending = (torch.sigmoid(stop) * advantage).mean()
    return actor + F.mse_loss(values, returns) + 0.01 * ending
