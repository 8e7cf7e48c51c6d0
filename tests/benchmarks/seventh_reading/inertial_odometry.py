"""Orientation and velocity of a pedestrian from an inertial unit, quaternions. Planted: the pitch is the asin of what
a normalised quaternion gives, which rounding takes to one and past it."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ResBlock1d(nn.Module):
    def __init__(self, inp, out, stride):
        super().__init__()
        self.a = nn.Conv1d(inp, out, 3, stride, 1, bias=False)
        self.b = nn.Conv1d(out, out, 3, 1, 1, bias=False)
        self.na, self.nb = nn.BatchNorm1d(out), nn.BatchNorm1d(out)
        self.skip = nn.Conv1d(inp, out, 1, stride)

    def forward(self, x):
        y = F.relu(self.na(self.a(x)))
        return F.relu(self.nb(self.b(y)) + self.skip(x))


def euler_angles(q):
    w, x, y, z = q.unbind(-1)
    roll = torch.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = torch.asin(2 * (w * y - z * x))  # planted: G213
    yaw = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return torch.stack([roll, pitch, yaw], -1)


class Odometer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(6, 64, 7, 2, 3), nn.ReLU(), ResBlock1d(64, 64, 1), ResBlock1d(64, 128, 2), ResBlock1d(128, 256, 2)
        )
        self.velocity, self.rotation = nn.Linear(256, 3), nn.Linear(256, 4)

    def forward(self, window):
        h = self.net(window).mean(-1)
        q = F.normalize(self.rotation(h).float(), dim=-1)
        return self.velocity(h), euler_angles(q)


def make_model():
    return Odometer()


def make_batch():
    angles = (torch.rand(64, 3) - 0.5) * torch.tensor([6.28, 3.14, 6.28])
    return torch.randn(64, 6, 200), (torch.randn(64, 3), angles)


def loss_fn(output, batch):
    velocity, angles = output
    true_velocity, true_angles = batch[1]
    turn = 1 - torch.cos(angles - true_angles)
    return F.mse_loss(velocity.float(), true_velocity) + turn.mean()
