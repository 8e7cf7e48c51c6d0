"""Surfaces from partial scans: a folding decoder with a chamfer distance of real lengths, and an edge length penalty.
Careful: lengths by .norm() and cdist, whose gradients at zero are zero in torch."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Encode(nn.Module):
    def __init__(self, width=128, code=256):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, width, 1), nn.Conv1d(2 * width, code, 1)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, points):
        h = F.relu(self.norm(self.a(points.transpose(1, 2))))
        h = torch.cat([h, h.amax(-1, keepdim=True).expand_as(h)], 1)
        return self.b(h).amax(-1)


class Fold(nn.Module):
    def __init__(self, code=256, side=16, width=256):
        super().__init__()
        line = torch.linspace(-0.5, 0.5, side)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2))
        self.first = nn.Sequential(nn.Linear(code + 2, width), nn.ReLU(), nn.Linear(width, 3))
        self.second = nn.Sequential(nn.Linear(code + 3, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, code):
        many = code[:, None].expand(-1, self.grid.shape[0], -1)
        grid = self.grid.expand(code.shape[0], -1, -1).to(code.dtype)
        once = self.first(torch.cat([many, grid], -1))
        return self.second(torch.cat([many, once], -1))


class Completion(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.fold = Encode(), Fold()

    def forward(self, points):
        return self.fold(self.encode(points))


def chamfer(a, b):
    far = torch.cdist(a, b)
    return far.min(2).values.mean() + far.min(1).values.mean()


def make_model():
    return Completion()


def make_batch():
    return torch.rand(8, 512, 3) - 0.5, torch.rand(8, 400, 3) - 0.5


def loss_fn(output, batch):
    made = output.float()
    edges = made.reshape(made.shape[0], 16, 16, 3).diff(dim=1).norm(dim=-1)
    return chamfer(made, batch[1]) + 0.01 * edges.mean()
