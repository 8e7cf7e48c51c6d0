"""Steering from an event camera: events are counted into time surfaces of each polarity, the whole in FP16.
Planted: the counts are kept in FP16, in which a pixel that flickers stops counting at 2048."""

import torch
import torch.nn as nn
import torch.nn.functional as F

HEIGHT, WIDTH, BINS = 64, 96, 4


def stack_events(x, y, p, bin_index, batch_index, batch, dtype):
    frames = torch.zeros(batch * BINS * 2 * HEIGHT * WIDTH, dtype=dtype, device=x.device)
    flat = (((batch_index * BINS + bin_index) * 2 + p) * HEIGHT + y) * WIDTH + x
    frames.scatter_add_(0, flat, torch.ones_like(flat, dtype=dtype))  # planted: G220
    return frames.view(batch, BINS * 2, HEIGHT, WIDTH)


class Residual(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1, stride=stride)

    def forward(self, x):
        return F.relu(self.skip(x) + self.conv2(F.relu(self.conv1(x))))


class Steering(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem = nn.Conv2d(BINS * 2, width, 5, stride=2, padding=2)
        self.stages = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 1)

    def forward(self, x, y, p, bin_index, batch_index):
        frames = stack_events(x, y, p, bin_index, batch_index, 4, self.head.weight.dtype)
        frames = torch.log1p(frames.float()).to(frames.dtype)
        h = self.stages(F.relu(self.stem(frames)))
        return self.head(h.mean((2, 3))).squeeze(-1)


def make_model():
    return Steering().half()


def make_batch():
    n = 300_000
    y, x = torch.randint(0, HEIGHT, (n,)), torch.randint(0, WIDTH, (n,))
    hot = torch.rand(n) < 0.4  # a lamp in the picture
    y, x = torch.where(hot, 10, y), torch.where(hot, 20, x)
    p = (torch.rand(n) < 0.5).long()
    return (x, y, p, torch.randint(0, BINS, (n,)), torch.randint(0, 4, (n,))), torch.rand(4) - 0.5


def loss_fn(output, batch):
    return F.smooth_l1_loss(output.float(), batch[1])
