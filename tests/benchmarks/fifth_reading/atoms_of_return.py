"""Distributional RL (C51) twin: projection with clamped atoms, cross entropy on log_softmax, burn-in LSTM."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class C51(nn.Module):
    def __init__(self, obs=32, actions=6, atoms=51, vmin=-10.0, vmax=10.0):
        super().__init__()
        self.lstm = nn.LSTM(obs, 128, batch_first=True)
        self.head = nn.Linear(128, actions * atoms)
        self.actions, self.atoms = actions, atoms
        self.vmin, self.vmax, self.dz = vmin, vmax, (vmax - vmin) / (atoms - 1)
        self.register_buffer("z", torch.linspace(vmin, vmax, atoms))

    def logits(self, obs):
        return self.head(self.lstm(obs)[0][:, -1]).view(-1, self.actions, self.atoms).float()

    @torch.no_grad()
    def target(self, nxt, reward, done):
        p = self.logits(nxt).softmax(-1)
        best = (p * self.z).sum(-1).argmax(-1)
        p = p[torch.arange(p.shape[0], device=p.device), best]
        tz = (reward[:, None] + 0.99 * (1 - done[:, None]) * self.z).clamp(self.vmin, self.vmax)
        b = ((tz - self.vmin) / self.dz).clamp(0, self.atoms - 1)
        lo, hi = b.floor().long(), b.ceil().long()
        m = torch.zeros_like(p)
        m.scatter_add_(1, lo, p * (hi.float() - b + (lo == hi).float()))
        m.scatter_add_(1, hi, p * (b - lo.float()))
        return m

    def forward(self, obs, nxt, act, reward, done):
        logp = F.log_softmax(self.logits(obs), -1)
        logp = logp[torch.arange(logp.shape[0], device=logp.device), act]
        return -(self.target(nxt, reward, done) * logp).sum(-1).mean()


def make_model():
    return C51()


def make_batch():
    b = 32
    return (
        torch.randn(b, 10, 32),
        torch.randn(b, 10, 32),
        torch.randint(0, 6, (b,)),
        torch.randn(b),
        torch.randint(0, 2, (b,)).float(),
    ), None


def loss_fn(output, batch):
    return output
