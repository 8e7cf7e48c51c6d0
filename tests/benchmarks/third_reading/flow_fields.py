"""Optical flow by a correlation volume and recurrent updates. Planted: the grid of places, up to 511, is made in
the 16 bits of the features before the flow is added."""

import torch
import torch.nn.functional as F
from torch import nn


def places(batch, h, w, like):
    y, x = torch.meshgrid(torch.arange(h, device=like.device), torch.arange(w, device=like.device), indexing="ij")
    return torch.stack((x, y)).to(like.dtype)[None].expand(batch, -1, -1, -1)


class Flow(nn.Module):
    def __init__(self, width=64, rounds=3):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 7, 2, 3), nn.InstanceNorm2d(32), nn.ReLU(), nn.Conv2d(32, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip
        self.update = nn.Conv2d(2 * width + 2, width, 3, padding=1)
        self.delta = nn.Conv2d(width, 2, 3, padding=1)
        self.rounds = rounds

    def forward(self, first, second):
        a, b = self.encoder(first), self.encoder(second)
        n, _, h, w = a.shape
        start = places(n, h, w, a)
        flow, state = torch.zeros(n, 2, h, w, device=a.device), torch.tanh(a)
        for _ in range(self.rounds):
            at = start + flow.detach()  # planted: G211
            grid = torch.stack((2 * at[:, 0] / (w - 1) - 1, 2 * at[:, 1] / (h - 1) - 1), -1)
            seen = F.grid_sample(b.float(), grid.float(), align_corners=True)
            state = torch.tanh(self.update(torch.cat([state, a * seen, flow], 1)))
            flow = flow + self.delta(state)
        return flow


def make_model():
    return Flow()


def make_batch():
    return {
        "first": torch.rand(1, 3, 256, 2048),
        "second": torch.rand(1, 3, 256, 2048),
        "flow": torch.randn(1, 2, 64, 512),
    }


def loss_fn(output, batch):
    return (output - batch["flow"]).abs().mean()
