"""Base-resolution profiles of reads along DNA (BPNet): shape and total are told apart. Planted: the target's shape is
its counts by their sum, and windows without a single read are in the batch: 0 / 0."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class DilatedBlock(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x):
        return x + F.relu(self.conv(x))


class ProfileNet(nn.Module):
    def __init__(self, width=64, depth=6, tasks=2):
        super().__init__()
        self.stem = nn.Conv1d(4, width, 25, padding=12)
        self.tower = nn.Sequential(*(DilatedBlock(width, 2**i) for i in range(1, depth + 1)))
        self.profile = nn.Conv1d(width, tasks * 4, 75, padding=37)
        self.mix = nn.Conv1d(tasks * 4, tasks, 1)
        self.total = nn.Linear(width, tasks)

    def forward(self, onehot):
        x = self.tower(F.relu(self.stem(onehot)))
        return self.mix(self.profile(x)), self.total(x.mean(-1))


def make_model():
    return ProfileNet()


def make_batch():
    sequence = F.one_hot(torch.randint(0, 4, (16, 1000)), 4).float().transpose(1, 2)
    coverage = torch.rand(16, 2, 1).mul(0.3)
    coverage[::4] = 0  # background windows
    return sequence, torch.poisson(coverage.expand(-1, -1, 1000))


def loss_fn(output, batch):
    logits, log_total = output
    counts = batch[1]
    total = counts.sum(-1)
    shape = counts / total.unsqueeze(-1)  # planted: G205
    profile = -(shape * F.log_softmax(logits.float(), -1)).sum(-1).mean()
    return profile + 0.1 * F.mse_loss(log_total.float(), torch.log1p(total))
