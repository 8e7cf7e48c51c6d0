"""Long-tailed recognition with a loss per class, averaged over classes. Planted: losses are divided by how many
samples a class has in the batch; of 100 classes many have none: 0 / 0 is NaN in any format."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Bottleneck(nn.Module):
    def __init__(self, cin, mid, cout, stride):
        super().__init__()
        self.a = nn.Conv2d(cin, mid, 1, bias=False)
        self.b = nn.Conv2d(mid, mid, 3, stride, 1, bias=False)
        self.c = nn.Conv2d(mid, cout, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (mid, mid, cout))
        self.skip = nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x):
        h = F.relu(self.norms[0](self.a(x)))
        h = F.relu(self.norms[1](self.b(h)))
        return F.relu(self.norms[2](self.c(h)) + self.skip(x))


class LongTail(nn.Module):
    def __init__(self, classes=100):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.stages = nn.Sequential(Bottleneck(32, 32, 64, 2), Bottleneck(64, 64, 128, 2), Bottleneck(128, 64, 256, 2))
        self.head = nn.Linear(256, classes)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((-2, -1)))


def balanced_loss(logits, target):
    each = F.cross_entropy(logits, target, reduction="none")
    member = F.one_hot(target, logits.shape[1]).float()
    total = (member * each[:, None]).sum(0)
    return (total / member.sum(0)).mean()  # planted: G205


def make_model():
    return LongTail()


def make_batch():
    return torch.randn(64, 3, 32, 32), (torch.rand(64).pow(3) * 100).long()


def loss_fn(output, batch):
    return balanced_loss(output, batch[1])
