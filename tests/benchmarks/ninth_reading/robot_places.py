"""A particle filter that is trained end to end: a robot in a hall of 20 m knows distances to eight beacons, a net says
how noisy each one is, and the particles that explain them best make up the answer."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Filter(nn.Module):
    def __init__(self, beacons=8, particles=256, hidden=64):
        super().__init__()
        self.particles = particles
        self.noise = nn.Sequential(nn.Linear(beacons, hidden), nn.ReLU(), nn.Linear(hidden, beacons))
        self.drift = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.register_buffer("beacons", 20.0 * torch.rand(beacons, 2, generator=torch.Generator().manual_seed(0)))

    def likelihood(self, places, heard):
        offset = places[:, :, None] - self.beacons
        away = (offset.square().sum(-1) + 1e-4).sqrt()
        sigma = 0.02 + 0.05 * torch.sigmoid(self.noise(heard).float())
        misfit = ((away - heard[:, None]) / sigma[:, None]).square().sum(-1)
        return torch.exp(-0.5 * misfit)

    def forward(self, places, motion, heard):
        weight = places.new_full(places.shape[:2], 1.0 / self.particles)
        answers = []
        for step in range(motion.shape[1]):
            places = places + motion[:, step, None] + 0.1 * self.drift(motion[:, step]).float()[:, None]
            weight = weight * self.likelihood(places, heard[:, step])
            weight = weight / weight.sum(-1, keepdim=True)  # planted: G205
            answers.append((weight[..., None] * places).sum(1))
        return torch.stack(answers, 1)


def make_model():
    return Filter()


def make_batch():
    g = torch.Generator().manual_seed(1)
    start = 20.0 * torch.rand(16, 1, 2, generator=g)
    motion = 0.3 * torch.randn(16, 6, 2, generator=g)
    way = start + motion.cumsum(1)
    beacons = 20.0 * torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    heard = torch.cdist(way, beacons.expand(16, -1, -1)) + 0.04 * torch.randn(16, 6, 8, generator=g)
    return {"places": 20.0 * torch.rand(16, 256, 2, generator=g), "motion": motion, "heard": heard, "way": way}


def loss_fn(output, batch):
    return F.smooth_l1_loss(output, batch["way"])
