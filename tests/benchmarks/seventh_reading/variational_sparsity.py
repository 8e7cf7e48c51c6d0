"""Sparse weights by variational dropout: each weight has its own noise, and what is noisy is pruned. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class NoisyLinear(nn.Module):
    def __init__(self, inp, out):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(out, inp) * inp**-0.5)
        self.log_sigma2 = nn.Parameter(torch.full((out, inp), -10.0))
        self.bias = nn.Parameter(torch.zeros(out))

    def log_alpha(self):
        return (self.log_sigma2 - torch.log(self.theta.pow(2) + 1e-16)).clamp(-10, 10)

    def forward(self, x):
        mean = F.linear(x, self.theta, self.bias)
        if not self.training:
            return mean
        with torch.autocast("cuda", enabled=False):
            variance = F.linear(x.float().square(), self.log_sigma2.clamp(-20, 4).exp())
            return mean + torch.sqrt(variance + 1e-8) * torch.randn_like(variance)

    def divergence(self):
        a = self.log_alpha()
        k1, k2, k3 = 0.63576, 1.87320, 1.48695
        return (k1 * torch.sigmoid(-(k2 + k3 * a)) + 0.5 * F.softplus(-a)).sum()


class SparseNet(nn.Module):
    def __init__(self, inp=784, hidden=512, classes=16):
        super().__init__()
        self.layers = nn.ModuleList(
            [NoisyLinear(inp, hidden), NoisyLinear(hidden, hidden), NoisyLinear(hidden, classes)]
        )

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x), sum(layer.divergence() for layer in self.layers)


def make_model():
    return SparseNet()


def make_batch():
    return torch.rand(128, 784), torch.randint(0, 16, (128,))


def loss_fn(output, batch):
    logits, divergence = output
    return F.cross_entropy(logits, batch[1]) + divergence / 60000
