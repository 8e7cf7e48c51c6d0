"""Momentum contrast (MoCo v2): a queue of negatives and a slowly moving copy of the encoder. Careful: normalised by
F.normalize, which autocast computes in FP32, and the queue is kept in FP32."""

import torch
import torch.nn.functional as F
from torch import nn


def encoder(dim):
    layers, width = [], 3
    for wider in (64, 128, 256, 512):
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(True)]
        width = wider
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)
    )


class MoCo(nn.Module):
    def __init__(self, dim=128, queue=16384, momentum=0.999, temperature=0.2):
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.query, self.key = encoder(dim), encoder(dim)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def follow(self):
        for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys):
        columns = (self.place + torch.arange(keys.shape[0], device=keys.device)) % self.queue.shape[1]
        self.queue[:, columns] = keys.T.to(self.queue.dtype)
        self.place.copy_((self.place + keys.shape[0]) % self.queue.shape[1])

    def forward(self, first, second):
        q = F.normalize(self.query(first), dim=1)
        with torch.no_grad():
            self.follow()
            k = F.normalize(self.key(second), dim=1)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        self.enqueue(k)
        return logits


def make_model():
    return MoCo()


def make_batch():
    images = torch.rand(64, 3, 96, 96)
    return (images, images.flip(-1)), torch.zeros(64, dtype=torch.long)


def run(model, batch):
    return model(*batch[0])


def loss_fn(logits, batch):
    return F.cross_entropy(logits, batch[1])
