"""Rates of substitution learnt from aligned genes: likelihoods of the leaves are folded along a tree by pruning.
Planted: the likelihood is a product over as many leaves as there are species, which comes to zero in FP32."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class RateMatrix(nn.Module):
    """A reversible generator: exchange rates times the frequencies of the letters."""

    def __init__(self, letters):
        super().__init__()
        self.exchange = nn.Parameter(torch.zeros(letters, letters))
        self.frequency = nn.Parameter(torch.zeros(letters))

    def forward(self):
        pi = self.frequency.softmax(0)
        rates = F.softplus(self.exchange + self.exchange.T) * pi
        rates = rates - torch.diag(rates.diagonal())
        return rates - torch.diag(rates.sum(1)), pi


class Pruning(nn.Module):
    def __init__(self, leaves=160, letters=4, features=8):
        super().__init__()
        self.rates = RateMatrix(letters)
        self.lengths = nn.Sequential(nn.Linear(features, 32), nn.SiLU(), nn.Linear(32, 1))
        self.leaves = leaves

    def forward(self, sites, traits):
        """sites: (sites, leaves, letters), one-hot; traits: (leaves, features)."""
        generator, pi = self.rates()
        length = F.softplus(self.lengths(traits)).squeeze(-1) + 1e-3
        step = torch.linalg.matrix_exp(generator * length[:, None, None])
        upward = torch.einsum("lij,slj->sli", step, sites)
        at_root = upward.prod(dim=1)
        return torch.log((pi * at_root).sum(-1))  # planted: G204


def make_model():
    return Pruning()


def make_batch():
    ancestor = torch.randint(0, 4, (64, 1))
    changed = torch.rand(64, 160) < 0.3
    letters = torch.where(changed, torch.randint(0, 4, (64, 160)), ancestor)
    return (F.one_hot(letters, 4).float(), torch.randn(160, 8)), None


def loss_fn(output, batch):
    return -output.mean()
