"""Supervised contrastive learning, with the largest similarity of each row taken off. Careful."""

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
        return F.normalize(self.head(self.net(views.flatten(0, 1))).float(), dim=1)


def make_model():
    return Encoder()


def make_batch():
    return {"views": torch.randn(64, 2, 3, 32, 32), "label": torch.randint(0, 10, (64,))}


def loss_fn(z, batch, temperature=0.07):
    label = batch["label"].repeat_interleave(2)
    itself = torch.eye(len(z), device=z.device)
    same = (label[:, None] == label).float() - itself
    logits = (z @ z.T).float() / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    weight = torch.exp(logits) * (1 - itself)
    log_share = logits - torch.log(weight.sum(1, keepdim=True) + 1e-12)
    return -((log_share * same).sum(1) / same.sum(1).clamp(min=1)).mean()
