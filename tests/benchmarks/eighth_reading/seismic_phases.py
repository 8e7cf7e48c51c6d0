"""Phases of earthquakes picked in three-component traces, the ratio of short to long averages beside the network's
features. Planted: a channel that is dead has no energy in its long window, and zero is divided by zero."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def moving_average(x, window):
    kernel = x.new_ones(x.shape[1], 1, window) / window
    return F.conv1d(F.pad(x, (window - 1, 0)), kernel, groups=x.shape[1])


class TriggerRatio(nn.Module):
    def __init__(self, short=20, long=200):
        super().__init__()
        self.short, self.long = short, long

    def forward(self, traces):
        energy = traces.square()
        sta = moving_average(energy, self.short)
        lta = moving_average(energy, self.long)
        ratio = sta / lta  # planted: G205
        return torch.log1p(ratio)


class Down(nn.Sequential):
    def __init__(self, cin, cout):
        super().__init__(nn.Conv1d(cin, cout, 7, stride=4, padding=3), nn.BatchNorm1d(cout), nn.ReLU())


class Up(nn.Module):
    def __init__(self, cin, skip, cout):
        super().__init__()
        self.up = nn.ConvTranspose1d(cin, cout, 4, stride=4)
        self.mix = nn.Sequential(nn.Conv1d(cout + skip, cout, 7, padding=3), nn.BatchNorm1d(cout), nn.ReLU())

    def forward(self, x, skip):
        return self.mix(torch.cat([self.up(x), skip], dim=1))


class PhasePicker(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.trigger = TriggerRatio()
        self.stem = nn.Sequential(nn.Conv1d(6, width, 7, padding=3), nn.BatchNorm1d(width), nn.ReLU())
        self.down1, self.down2 = Down(width, 2 * width), Down(2 * width, 4 * width)
        self.up2, self.up1 = Up(4 * width, 2 * width, 2 * width), Up(2 * width, width, width)
        self.head = nn.Conv1d(width, 3, 1)

    def forward(self, traces):
        peak = traces.abs().amax(dim=-1, keepdim=True)
        normed = traces / (peak + 1e-6)
        a = self.stem(torch.cat([normed, self.trigger(traces)], dim=1))
        b = self.down1(a)
        c = self.down2(b)
        return self.head(self.up1(self.up2(c, b), a))


def make_model():
    return PhasePicker()


def make_batch():
    traces = torch.randn(8, 3, 2048) * torch.rand(8, 3, 1) * 200.0
    traces[2, 1] = 0.0  # a horizontal channel that is down
    onset = torch.randint(200, 1800, (8, 2)).sort(dim=1).values
    grid = torch.arange(2048).float()
    bumps = torch.exp(-((grid - onset[..., None]) ** 2) / (2 * 20.0**2)) * 0.5
    target = torch.cat([1 - bumps.sum(1, keepdim=True).clamp(max=1.0), bumps], dim=1)
    return traces, target


def loss_fn(output, batch):
    target = batch[1]
    return -(target * F.log_softmax(output, dim=1)).sum(1).mean()
