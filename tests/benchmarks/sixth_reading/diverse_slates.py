"""Recommended slates with a determinantal point process. Planted: the slate's kernel is a product that autocast gives
in 16 bits, and logdet has no kernel there; in FP32 the jitter keeps it regular."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Slates(nn.Module):
    def __init__(self, items=20000, dim=64, users=5000):
        super().__init__()
        self.user = nn.Embedding(users, dim)
        self.item = nn.Embedding(items, dim)
        self.quality = nn.Sequential(nn.Linear(2 * dim, 128), nn.ReLU(), nn.Linear(128, 1))
        self.jitter = 1e-3

    def features(self, user, slate):
        v = self.item(slate)
        u = self.user(user)[:, None].expand_as(v)
        q = self.quality(torch.cat([u, v], -1)).squeeze(-1)
        return F.normalize(v, dim=-1), q

    def forward(self, user, slate):
        v, q = self.features(user, slate)
        scaled = v * torch.sigmoid(q)[..., None]
        kernel = scaled @ scaled.transpose(1, 2)
        kernel = kernel + self.jitter * torch.eye(slate.shape[1], device=slate.device).to(kernel.dtype)
        return torch.logdet(kernel), q  # planted: G404|G401


def make_model():
    return Slates()


def make_batch():
    return (torch.randint(0, 5000, (128,)), torch.randint(0, 20000, (128, 8))), torch.rand(128, 8).round()


def loss_fn(output, batch):
    logdet, q = output
    return F.binary_cross_entropy_with_logits(q, batch[1]) - 0.01 * logdet.mean()
