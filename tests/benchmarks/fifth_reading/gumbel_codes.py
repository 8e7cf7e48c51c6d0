"""Discrete latent VAE with hand-written Gumbel noise. Planted: log of zero: uniform noise includes 0."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def sample_gumbel(logits):
    u = torch.rand_like(logits)
    return -torch.log(-torch.log(u))  # planted: G204


class DiscreteVAE(nn.Module):
    def __init__(self, groups=16, codes=32, tau=0.5):
        super().__init__()
        self.groups, self.codes, self.tau = groups, codes, tau
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, groups * codes))
        self.dec = nn.Sequential(nn.Linear(groups * codes, 512), nn.ReLU(), nn.Linear(512, 784))

    def forward(self, x):
        logits = self.enc(x).view(-1, self.groups, self.codes)
        y = F.softmax((logits + sample_gumbel(logits)) / self.tau, dim=-1)
        logq = F.log_softmax(logits, -1)
        kl = (logq.exp() * (logq + torch.log(torch.tensor(float(self.codes))))).sum((-1, -2)).mean()
        return self.dec(y.flatten(1)), kl


def make_model():
    return DiscreteVAE()


def make_batch():
    x = torch.rand(32, 1, 28, 28)
    return x, x


def loss_fn(output, batch):
    rec, kl = output
    return F.binary_cross_entropy_with_logits(rec, batch[1].flatten(1), reduction="none").sum(1).mean() + kl
