"""Restores music that was stored in 16 bits: a net takes noise away, and what it gives is rounded to 16 bits again
(straight through), so that the error of the file that is written is trained."""

import torch
import torch.nn as nn
import torch.nn.functional as F

LEVELS = 32767.0


class Layer(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.deep = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x):
        a, gate = self.deep(x).chunk(2, 1)
        return x + self.out(torch.tanh(a) * torch.sigmoid(gate))


class Restorer(nn.Module):
    def __init__(self, width=32, layers=4):
        super().__init__()
        self.begin = nn.Conv1d(1, width, 15, padding=7)
        self.layers = nn.Sequential(*(Layer(width, 2**i) for i in range(layers)))
        self.end = nn.Conv1d(width, 1, 15, padding=7)

    def forward(self, wave):
        clean = torch.tanh(self.end(self.layers(self.begin(wave))))
        stored = torch.round(clean * LEVELS) / LEVELS  # planted: G211
        return clean + (stored - clean).detach()


def make_model():
    return Restorer()


def make_batch():
    clean = 0.3 * torch.randn(8, 1, 4096).clamp(-3, 3)
    return clean + 0.01 * torch.randn(8, 1, 4096), clean


def loss_fn(output, batch):
    return F.l1_loss(output.float(), batch[1])
