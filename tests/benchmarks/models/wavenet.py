"""WaveNet: three stacks of ten causal, dilated, gated convolutions over 8 x 16000 samples of 256 levels."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SAMPLES, LEVELS, WIDTH, SKIP, STACKS, DOUBLINGS = 8, 16_000, 256, 128, 256, 3, 10


class Layer(nn.Module):
    def __init__(self, dilation):
        super().__init__()
        self.past = dilation
        self.gated = nn.Conv1d(WIDTH, 2 * WIDTH, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, SKIP, 1)

    def forward(self, x):
        value, gate = self.gated(F.pad(x, (self.past, 0))).chunk(2, dim=1)
        y = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(LEVELS, WIDTH)
        self.layers = nn.ModuleList(Layer(2**power) for _ in range(STACKS) for power in range(DOUBLINGS))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(SKIP, SKIP, 1), nn.ReLU(), nn.Conv1d(SKIP, LEVELS, 1))

    def forward(self, levels):
        x, total = self.embed(levels).transpose(1, 2), 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.head(total)


def make_model():
    return WaveNet()


def make_batch():
    levels = torch.randint(0, LEVELS, (BATCH, SAMPLES + 1))
    return levels[:, :-1], levels[:, 1:]


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
