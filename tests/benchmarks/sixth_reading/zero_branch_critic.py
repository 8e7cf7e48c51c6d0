"""A critic of residual blocks whose last convolutions start at zero, all under a spectral norm written by hand.
Planted: the weight is divided by its largest singular value, which is zero for a weight of zeros: NaN before the first
step."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SNConv(nn.Module):
    def __init__(self, cin, cout, k, zero=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(cout, cin, k, k) if zero else torch.randn(cout, cin, k, k) * 0.05)
        self.bias = nn.Parameter(torch.zeros(cout))
        self.register_buffer("u", F.normalize(torch.randn(cout), dim=0))
        self.pad = k // 2

    def sigma(self):
        w = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(w.t().mv(self.u), dim=0)
            self.u.copy_(F.normalize(w.mv(v), dim=0))
        return torch.dot(self.u, w.mv(v))

    def forward(self, x):
        return F.conv2d(x, self.weight / self.sigma(), self.bias, padding=self.pad)  # planted: G205


class Res(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.a, self.b = SNConv(ch, ch, 3), SNConv(ch, ch, 3, zero=True)

    def forward(self, x):
        return x + self.b(F.relu(self.a(F.relu(x))))


class Critic(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.stem = SNConv(3, ch, 3)
        self.r1, self.r2 = Res(ch), Res(ch)
        self.fc = nn.Linear(ch, 1)

    def forward(self, x):
        x = F.avg_pool2d(self.r1(self.stem(x)), 2)
        x = F.avg_pool2d(self.r2(x), 2)
        return self.fc(F.relu(x).mean((2, 3))).squeeze(1)


def make_model():
    return Critic()


def make_batch():
    return torch.randn(32, 3, 32, 32), torch.cat([torch.ones(16), -torch.ones(16)])


def loss_fn(output, batch):
    return F.relu(1 - batch[1] * output).mean()
