"""Grades of an eye disease by cumulative logits. Careful: probabilities of a grade are differences of logsigmoids in
logarithms, cut points rise by softplus steps with a floor, all in FP32."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Fire(nn.Module):
    def __init__(self, cin, squeeze, expand):
        super().__init__()
        self.s = nn.Conv2d(cin, squeeze, 1)
        self.e1, self.e3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.s(x))
        return torch.cat([F.relu(self.e1(x)), F.relu(self.e3(x))], 1)


class Grades(nn.Module):
    def __init__(self, grades=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.fires = nn.Sequential(
            Fire(32, 16, 32), nn.MaxPool2d(2), Fire(64, 16, 64), nn.MaxPool2d(2), Fire(128, 32, 64)
        )
        self.score = nn.Linear(128, 1)
        self.first = nn.Parameter(torch.tensor(-1.0))
        self.steps = nn.Parameter(torch.zeros(grades - 2))

    def cuts(self):
        rise = F.softplus(self.steps) + 1e-2
        return torch.cat([self.first[None], self.first + rise.cumsum(0)])

    def forward(self, x):
        h = self.fires(F.relu(self.stem(x))).mean((2, 3))
        return self.cuts() - self.score(h).float()


def log_interval(upper, lower):
    """log(sigmoid(upper) - sigmoid(lower)) for upper > lower."""
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))


def make_model():
    return Grades()


def make_batch():
    return torch.randn(16, 3, 96, 96), torch.randint(0, 5, (16,))


def loss_fn(output, batch):
    inner = log_interval(output[:, 1:], output[:, :-1])
    table = torch.cat([F.logsigmoid(output[:, :1]), inner, F.logsigmoid(-output[:, -1:])], 1)
    return F.nll_loss(table, batch[1])
