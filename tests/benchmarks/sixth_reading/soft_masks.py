"""Sparse masks over features, relaxed Bernoulli samples by hand. Careful: the uniform noise keeps 1e-6 away from both
ends, in FP32, and the KL to the prior goes through logsigmoid."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class RelaxedMask(nn.Module):
    def __init__(self, features, prior=0.2, temperature=0.5):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(features))
        self.temperature = temperature
        self.register_buffer("prior", torch.logit(torch.tensor(prior)))

    def forward(self, x):
        u = torch.rand_like(x, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
        noise = torch.log(u) - torch.log1p(-u)
        return torch.sigmoid((self.logits + noise) / self.temperature)

    def divergence(self):
        p = torch.sigmoid(self.logits)
        on = F.logsigmoid(self.logits) - F.logsigmoid(self.prior)
        off = F.logsigmoid(-self.logits) - F.logsigmoid(-self.prior)
        return (p * on + (1 - p) * off).sum()


class Selector(nn.Module):
    def __init__(self, features=512, width=256, classes=4):
        super().__init__()
        self.mask = RelaxedMask(features)
        self.net = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.net(x * self.mask(x)), self.mask.divergence()


def make_model():
    return Selector()


def make_batch():
    return torch.randn(128, 512), torch.randint(0, 4, (128,))


def loss_fn(output, batch):
    logits, divergence = output
    return F.cross_entropy(logits, batch[1]) + divergence / 50000
