"""Offline reinforcement learning by implicit values (IQL): expectiles, two critics, a policy weighted by exponentiated
advantages that are clamped at 100. Careful: the weights have no gradient, and inf is clamped as well."""

import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def mlp(cin, cout, width=256):
    return nn.Sequential(nn.Linear(cin, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, cout))


class Critics(nn.Module):
    def __init__(self, obs, act):
        super().__init__()
        self.q1, self.q2 = mlp(obs + act, 1), mlp(obs + act, 1)

    def forward(self, o, a):
        x = torch.cat([o, a], -1)
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)


class IQL(nn.Module):
    def __init__(self, obs=32, act=8):
        super().__init__()
        self.v, self.q = mlp(obs, 1), Critics(obs, act)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.policy = mlp(obs, act)
        self.log_std = nn.Parameter(torch.zeros(act))

    def forward(self, o, a, o2):
        with torch.no_grad():
            target = torch.minimum(*self.target(o, a))
            after = self.v(o2).squeeze(-1)
        return {
            "v": self.v(o).squeeze(-1),
            "q": self.q(o, a),
            "target": target,
            "after": after,
            "mean": torch.tanh(self.policy(o)),
            "log_std": self.log_std.clamp(-5, 2),
        }


def expectile(diff, tau=0.7):
    weight = torch.where(diff > 0, tau, 1 - tau)
    return (weight * diff**2).mean()


def make_model():
    return IQL()


def make_batch():
    n = 256
    return (torch.randn(n, 32), torch.rand(n, 8) * 2 - 1, torch.randn(n, 32)), (torch.randn(n), torch.ones(n))


def loss_fn(output, batch):
    reward, alive = batch[1]
    out = dict(output.items())
    v_loss = expectile(out["target"].float() - out["v"].float())
    goal = (reward + 0.99 * alive * out["after"].float()).detach()
    q_loss = sum(F.mse_loss(q.float(), goal) for q in out["q"])
    weight = torch.exp(3.0 * (out["target"].float() - out["v"].float())).clamp(max=100.0).detach()
    z = (batch[0][1] - out["mean"].float()) / out["log_std"].exp()
    logp = (-0.5 * z**2 - out["log_std"] - 0.5 * math.log(2 * math.pi)).sum(-1)
    return v_loss + q_loss - (weight * logp).mean()
