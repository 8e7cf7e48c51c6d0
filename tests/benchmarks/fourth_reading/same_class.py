"""Supervised contrastive learning. Planted: similarities over a temperature of 0.01 are exponentiated without their
largest taken off, and that of a sample with itself is e^100."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, width=64, d=128):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, d))

    def forward(self, views):
        return F.normalize(self.head(self.net(views.flatten(0, 1))), dim=1)


def make_model():
    return Encoder()


def make_batch():
    return {"views": torch.randn(64, 2, 3, 32, 32), "label": torch.randint(0, 10, (64,))}


def loss_fn(z, batch, temperature=0.01):
    label = batch["label"].repeat_interleave(2)
    other = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    same = (label[:, None] == label) & other
    similarity = z @ z.T
    weight = torch.exp(similarity / temperature) * other  # planted: G203
    log_share = similarity / temperature - torch.log(weight.sum(1, keepdim=True))
    return -((log_share * same).sum(1) / same.sum(1).clamp(min=1)).mean()
