"""A board game's policy and value from self-play (AlphaZero). Planted: illegal moves get -1e9 in the logits' own
format, which is -inf in FP16, and a visit share of zero times it is NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.n2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.n1(self.c1(x)))
        return F.relu(x + self.n2(self.c2(y)))


class BoardNet(nn.Module):
    def __init__(self, planes=24, width=96, depth=5, moves=1968):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(planes, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.tower = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.policy_conv, self.policy = nn.Conv2d(width, 32, 1), nn.Linear(32 * 64, moves)
        self.value_conv = nn.Conv2d(width, 8, 1)
        self.value = nn.Sequential(nn.Linear(8 * 64, 128), nn.ReLU(), nn.Linear(128, 1), nn.Tanh())

    def forward(self, board, legal):
        x = self.tower(self.stem(board))
        logits = self.policy(F.relu(self.policy_conv(x)).flatten(1))
        logits = logits + (1 - legal.to(logits.dtype)) * -1e9  # planted: G201
        value = self.value(F.relu(self.value_conv(x)).flatten(1))
        return logits, value.squeeze(1)


def make_model():
    return BoardNet()


def make_batch():
    legal = torch.rand(64, 1968) < 0.02
    legal[:, 0] = True
    visits = torch.rand(64, 1968) * legal
    visits = visits / visits.sum(1, keepdim=True)
    return (torch.randn(64, 24, 8, 8), legal), (visits, torch.rand(64) * 2 - 1)


def loss_fn(output, batch):
    logits, value = output
    visits, result = batch[1]
    policy = -(visits * F.log_softmax(logits, -1)).sum(1).mean()
    return policy + F.mse_loss(value.float(), result)
