"""Two critics of a robot in BF16, with slow copies of them. Planted: the copies move by lerp_(online, 0.005); beside
BF16's 8 bits a step of half a percent of a difference is mostly rounded away, and they stand still."""

import copy
import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F


class Critic(nn.Module):
    def __init__(self, obs=60, act=12, width=256):
        super().__init__()
        sizes = (obs + act, width, width)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(width, 1)

    def forward(self, o, a):
        x = torch.cat([o, a], -1)
        for layer in self.layers:
            x = F.elu(layer(x))
        return self.out(x).squeeze(-1)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.ModuleList([Critic(), Critic()]).to(torch.bfloat16)
        self.slow = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def follow(self, tau=0.005):
        for old, new in zip(self.slow.parameters(), self.online.parameters(), strict=False):
            old.lerp_(new, tau)  # planted: G220

    def forward(self, o, a, o2, a2):
        o, a, o2, a2 = (t.to(torch.bfloat16) for t in (o, a, o2, a2))
        if self.training:
            self.follow()
        with torch.no_grad():
            after = torch.minimum(*(q(o2, a2) for q in self.slow))
        return [q(o, a).float() for q in self.online], after.float()


def make_model():
    return Pair()


def make_batch():
    n = 512
    step = (torch.randn(n, 60), torch.rand(n, 12) * 2 - 1, torch.randn(n, 60), torch.rand(n, 12) * 2 - 1)
    return step, torch.randn(n)


def loss_fn(output, batch):
    now, after = output
    goal = batch[1] + 0.99 * after
    return sum(F.huber_loss(q, goal) for q in now)
