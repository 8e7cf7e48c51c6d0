"""Slot attention over image features with a broadcast decoder. Careful: the attention's eps is added to a softmax,
which autocast leaves in FP32."""

import torch
import torch.nn.functional as F
from torch import nn


class SlotAttention(nn.Module):
    def __init__(self, slots=8, width=64, rounds=3, eps=1e-8):
        super().__init__()
        self.slots, self.rounds, self.eps, self.scale = slots, rounds, eps, width**-0.5
        self.mean = nn.Parameter(torch.randn(1, 1, width))
        self.log_deviation = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, width))
        self.norm_in, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        b, _, width = x.shape
        noise = torch.randn(b, self.slots, width, device=x.device)
        slots = self.mean + self.log_deviation.exp() * noise
        x = self.norm_in(x)
        k, v = self.k(x), self.v(x)
        for _ in range(self.rounds):
            before = slots
            q = self.q(self.norm_slots(slots)) * self.scale
            attention = torch.einsum("bid,bjd->bij", q, k).softmax(dim=1) + self.eps
            attention = attention / attention.sum(dim=-1, keepdim=True)
            updates = torch.einsum("bjd,bij->bid", v, attention)
            slots = self.gru(updates.reshape(-1, width), before.reshape(-1, width)).view(b, -1, width)
            slots = slots + self.mlp(slots)
        return slots


class Scene(nn.Module):
    def __init__(self, width=64, side=8):
        super().__init__()
        self.side = side
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 5, 2, 2), nn.ReLU(),
            nn.Conv2d(width, width, 5, 2, 2), nn.ReLU(),
        )  # fmt: skip
        self.places = nn.Parameter(0.02 * torch.randn(1, width, 16, 16))
        self.slots = SlotAttention(width=width)
        self.grid = nn.Parameter(0.02 * torch.randn(1, width, side, side))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, 4), nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 4), nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
        )  # fmt: skip

    def forward(self, image):
        x = self.encoder(image) + self.places
        slots = self.slots(x.flatten(2).transpose(1, 2))
        b, n, width = slots.shape
        seeds = slots.view(b * n, width, 1, 1) + self.grid
        colours, masks = self.decoder(seeds).view(b, n, 4, 128, 128).split([3, 1], 2)
        return (colours * masks.softmax(1)).sum(1)


def make_model():
    return Scene()


def make_batch():
    return torch.rand(16, 3, 128, 128), torch.zeros(16)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[0])
