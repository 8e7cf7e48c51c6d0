"""Gestures of an event camera by spiking neurons with a surrogate gradient of their own. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, membrane, slope):
        ctx.save_for_backward(membrane)
        ctx.slope = slope
        return (membrane > 0).to(membrane.dtype)

    @staticmethod
    def backward(ctx, grad):
        (membrane,) = ctx.saved_tensors
        return grad / (ctx.slope * membrane.abs() + 1) ** 2, None


class Leaky(nn.Module):
    def __init__(self, slope=25.0):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(2.0))
        self.slope = slope

    def forward(self, current, state):
        membrane = torch.sigmoid(self.decay) * state + current
        spike = Spike.apply(membrane - 1.0, self.slope)
        return spike, membrane - spike.detach()


class GestureNet(nn.Module):
    def __init__(self, classes=16):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 32, 5, 2, 2), nn.Conv2d(32, 64, 5, 2, 2)
        self.fc, self.out = nn.Linear(64 * 64, 256), nn.Linear(256, classes)
        self.l1, self.l2, self.l3 = Leaky(), Leaky(), Leaky()

    def forward(self, events):
        s1 = s2 = s3 = 0.0
        total = 0.0
        for frame in events:
            x, s1 = self.l1(self.c1(frame), s1)
            x, s2 = self.l2(self.c2(x), s2)
            x, s3 = self.l3(self.fc(x.flatten(1)), s3)
            total = total + self.out(x)
        return total / events.shape[0]


def make_model():
    return GestureNet()


def make_batch():
    return torch.poisson(torch.full((8, 16, 2, 32, 32), 0.1)), torch.randint(0, 16, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
