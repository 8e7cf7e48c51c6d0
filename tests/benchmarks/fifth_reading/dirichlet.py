"""Evidential classification (Sensoy et al.): KL to the uniform Dirichlet with exponential evidence. Planted: exp of
an unbounded output, then sums and lgamma."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class EDL(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.fc = nn.Linear(1024, classes)

    def forward(self, x):
        evidence = torch.exp(self.fc(self.body(x)))  # planted: G203
        return evidence + 1


def kl(alpha, k):
    s = alpha.sum(1, keepdim=True)
    a = torch.lgamma(s) - torch.lgamma(alpha).sum(1, keepdim=True) - torch.lgamma(torch.tensor(float(k)))
    b = ((alpha - 1) * (torch.digamma(alpha) - torch.digamma(s))).sum(1, keepdim=True)
    return a + b


def make_model():
    return EDL()


def make_batch():
    return torch.rand(32, 1, 28, 28), torch.randint(0, 10, (32,))


def loss_fn(output, batch):
    y = F.one_hot(batch[1], 10).float()
    s = output.sum(1, keepdim=True)
    p = output / s
    mse = ((y - p) ** 2 + p * (1 - p) / (s + 1)).sum(1)
    return (mse + 0.1 * kl(y + (1 - y) * output, 10).squeeze(1)).mean()
