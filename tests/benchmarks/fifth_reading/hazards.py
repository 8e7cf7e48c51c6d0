"""DeepSurv: Cox proportional hazards with a neural risk function. Planted: exp overflow: unbounded risk, no maximum
taken off."""

import itertools

import torch
from torch import nn


class NegativeLogLikelihood(nn.Module):
    def __init__(self, l2=1e-4):
        super().__init__()
        self.l2 = l2

    def forward(self, risk, time, event, model):
        order = torch.argsort(time, descending=True)
        risk, event = risk.view(-1)[order], event[order]
        at_risk = torch.cumsum(risk.exp(), dim=0)  # planted: G203
        nll = -((risk - at_risk.log()) * event).sum() / event.sum().clamp(min=1)
        return nll + self.l2 * sum(p.pow(2).sum() for p in model.parameters() if p.dim() > 1)


class DeepSurv(nn.Module):
    def __init__(self, sizes=(32, 128, 128, 1), drop=0.2):
        super().__init__()
        layers = []
        for i, o in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(i, o), nn.SELU(), nn.Dropout(drop)]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
        self.criterion = NegativeLogLikelihood()

    def forward(self, x, time, event):
        return self.criterion(self.net(x), time, event, self)


def make_model():
    return DeepSurv()


def make_batch():
    n = 512
    return (torch.randn(n, 32), torch.rand(n) * 100, torch.randint(0, 2, (n,)).float()), None


def loss_fn(output, batch):
    return output
