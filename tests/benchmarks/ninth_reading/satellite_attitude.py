"""Attitude of a satellite from a picture of it: a unit quaternion, with the angle between turns as loss and the place
relative to the range."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Pose(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        layers, cin = [], 1
        for cout in (width, 2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
            cin = cout
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.turn, self.place = nn.Linear(cin, 4), nn.Linear(cin, 3)
        with torch.no_grad():
            self.turn.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, x):
        h = self.body(x)
        return F.normalize(self.turn(h).float(), dim=-1, eps=1e-6), self.place(h).float()


def angle_between(p, q):
    """Angle in radians of two turns, by its half's sine and cosine: exact near zero too."""
    plus, minus = (p + q).square().sum(-1), (p - q).square().sum(-1)
    small = torch.minimum(plus, minus)
    large = torch.maximum(plus, minus)
    return 4.0 * torch.atan2((small + 1e-8).sqrt(), (large + 1e-8).sqrt())


def make_model():
    return Pose()


def make_batch():
    turn = F.normalize(torch.randn(16, 4), dim=-1)
    place = torch.cat((torch.randn(16, 2), 5.0 + 35.0 * torch.rand(16, 1)), -1)
    return torch.rand(16, 1, 128, 128), (turn, place)


def loss_fn(output, batch):
    turn, place = output
    true_turn, true_place = batch[1]
    away = ((place - true_place).square().sum(-1) + 1e-6).sqrt() / true_place.norm(dim=-1)
    return angle_between(turn, true_turn).mean() + away.mean()
