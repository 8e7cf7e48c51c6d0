"""A policy over many actions, clipped ratios of probabilities and a bonus of entropy. Planted: the entropy is
p log p on a softmax, whose small shares are zero."""

import torch
import torch.nn.functional as F
from torch import nn

ACTIONS = 512


class ActorCritic(nn.Module):
    def __init__(self, seen=256, width=512):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(seen, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, ACTIONS), nn.Linear(width, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)

    def forward(self, seen):
        h = self.body(seen)
        return self.actor(h), self.critic(h).squeeze(-1)


def make_model():
    return ActorCritic()


def make_batch():
    n = 4096
    rest = {
        "action": torch.randint(0, ACTIONS, (n,)),
        "old": torch.full((n,), -6.2),
        "advantage": torch.randn(n),
        "goal": torch.randn(n),
    }
    return torch.randn(n, 256), rest


def loss_fn(output, batch):
    logits, value = output
    then = batch[1]
    chosen = F.log_softmax(logits, -1).gather(1, then["action"][:, None]).squeeze(1)
    ratio = (chosen - then["old"]).clamp(-20, 20).exp()
    gain = torch.minimum(ratio * then["advantage"], ratio.clamp(0.8, 1.2) * then["advantage"])
    p = torch.softmax(logits, -1)
    entropy = -(p * torch.log(p)).sum(-1)  # planted: G204
    return -gain.mean() + 0.5 * F.mse_loss(value, then["goal"]) - 0.01 * entropy.mean()
