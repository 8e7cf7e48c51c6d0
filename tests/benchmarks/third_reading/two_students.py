"""Two small networks that teach each other (mutual learning). Planted: the divergence is written as p * log(p / q) with
softmaxes, where q can be zero."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def small(width):
    def layer(i, o, s):
        return [nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

    body = layer(3, width, 1) + layer(width, 2 * width, 2) + layer(2 * width, 4 * width, 2)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100))


class Students(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = small(32), small(48)

    def forward(self, image):
        return self.a(image), self.b(image)


def divergence(teacher, student):
    p, q = F.softmax(teacher.detach(), 1), F.softmax(student, 1)
    return (p * torch.log(p / q)).sum(1).mean()  # planted: G204|G205


def loss_fn(output, batch):
    a, b = output
    wanted = batch[1]
    return F.cross_entropy(a, wanted) + F.cross_entropy(b, wanted) + divergence(b, a) + divergence(a, b)


def make_model():
    return Students()


def make_batch():
    return torch.randn(64, 3, 32, 32), torch.randint(0, 100, (64,))
