"""PPO update: clipped ratio, normalised advantages, explained-variance style value loss, entropy of a categorical."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Categorical


class ActorCritic(nn.Module):
    def __init__(self, obs=32, actions=8):
        super().__init__()
        self.torso = nn.Sequential(nn.Linear(obs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.pi, self.v = nn.Linear(128, actions), nn.Linear(128, 1)

    def forward(self, obs, action):
        h = self.torso(obs)
        dist = Categorical(logits=self.pi(h).float())
        return dist.log_prob(action), dist.entropy(), self.v(h).squeeze(-1)


def make_model():
    return ActorCritic()


def make_batch():
    n = 512
    act = torch.randint(0, 8, (n,))
    return (torch.randn(n, 32), act), (-torch.rand(n) * 2 - 1, torch.randn(n), torch.randn(n))


def loss_fn(output, batch):
    logp, entropy, value = output
    old, adv, ret = batch[1]
    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
    ratio = (logp - old).clamp(-10, 10).exp()
    pg = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
    return pg + 0.5 * F.mse_loss(value.float(), ret) - 0.01 * entropy.mean()
