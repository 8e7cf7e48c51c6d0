"""Knowledge distillation by Jensen-Shannon divergence with probabilities. Planted: p / m and its logarithm: 0 / 0 and
log(0) where probabilities vanish."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def mlp(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 100))


class Distill(nn.Module):
    def __init__(self, T=4.0):
        super().__init__()
        self.student, self.teacher, self.T = mlp(256), mlp(1024).requires_grad_(False), T

    def jsd(self, p, q):
        m = 0.5 * (p + q)
        left = (p * (p / m).log()).sum(-1)  # planted: G204|G205
        right = (q * (q / m).log()).sum(-1)
        return 0.5 * (left + right)

    def forward(self, x):
        s = self.student(x)
        with torch.no_grad():
            t = self.teacher(x)
        return s, self.jsd((s / self.T).softmax(-1), (t / self.T).softmax(-1)).mean()


def make_model():
    return Distill()


def make_batch():
    return torch.randn(64, 3, 32, 32), torch.randint(0, 100, (64,))


def loss_fn(output, batch):
    logits, jsd = output
    return F.cross_entropy(logits, batch[1]) + 16 * jsd
