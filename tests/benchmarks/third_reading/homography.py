"""Homographies from four moved corners, solved inside the network. Planted: the system is solved in the 16 bits of what
the network gives, which torch refuses."""

import torch
from torch import nn


class Homography(nn.Module):
    def __init__(self):
        super().__init__()
        layers, i = [], 2
        for o in (64, 64, 128, 128):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
            i = o
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 64, 512), nn.ReLU(), nn.Linear(512, 8))
        self.register_buffer("corners", torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))

    def forward(self, pair):
        shift = self.net(pair).view(-1, 4, 2)
        source = self.corners.to(shift.dtype).expand_as(shift)
        x, y = source.unbind(-1)
        u, v = (source + shift).unbind(-1)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
        second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
        system = torch.cat([first, second], 1)
        return torch.linalg.solve(system, torch.cat([u, v], 1).unsqueeze(-1)).squeeze(-1)  # planted: G404


def make_model():
    return Homography()


def make_batch():
    return torch.randn(32, 2, 128, 128), torch.randn(32, 8)


def loss_fn(output, batch):
    return nn.functional.smooth_l1_loss(output, batch[1])
