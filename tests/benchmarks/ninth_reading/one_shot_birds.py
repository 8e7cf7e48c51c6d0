"""Few-shot naming of birds: each class is a mean and a diagonal spread of its support pictures, mixed with the
spread of the task, and a query goes to the class that is nearest in that measure. Shots: 1 to 5; here 1."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(), nn.MaxPool2d(2))


class Nearest(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.body = nn.Sequential(
            conv_block(3, width),
            conv_block(width, width),
            conv_block(width, width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def embed(self, pictures):
        lead = pictures.shape[:-3]
        return self.body(pictures.flatten(0, len(lead) - 1)).view(*lead, -1).float()

    def forward(self, support, query):
        s, q = self.embed(support), self.embed(query)
        shots = s.shape[1]
        mean = s.mean(1)
        of_task = s.flatten(0, 1).var(0)
        of_class = s.var(1)  # planted: G205
        trust = shots / (shots + 1.0)
        spread = trust * of_class + (1.0 - trust) * of_task + 1.0
        away = (q[:, None] - mean[None]).square() / spread[None]
        return -away.sum(-1)


def make_model():
    return Nearest()


def make_batch():
    return {
        "support": torch.rand(5, 1, 3, 64, 64),
        "query": torch.rand(40, 3, 64, 64),
        "kind": torch.randint(0, 5, (40,)),
    }


def loss_fn(output, batch):
    return F.cross_entropy(output, batch["kind"])
