"""Notes of polyphonic music from spectrograms; onsets are rare, weights by their count. Planted: frames without a
note have a sum of zero, by which their targets are divided; and -inf times a mask."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class NoteNet(nn.Module):
    def __init__(self, bins=256, notes=88, hidden=128):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(bins, 256), nn.GELU(), nn.Linear(256, hidden))
        self.rnn = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, notes)

    def forward(self, spectrum, playable):
        h, _ = self.rnn(self.front(torch.log1p(spectrum)))
        logits = self.out(h).float()
        outside = torch.logical_not(playable).float()
        return logits + outside[:, None] * -torch.inf  # planted: G205|G201


def make_model():
    return NoteNet()


def make_batch():
    spectrum = torch.rand(8, 100, 256) * 10
    playable = (torch.arange(88) > 3).expand(8, 88)
    notes = (torch.rand(8, 100, 88) < 0.02).float() * playable[:, None]
    notes[:, :5] = 0
    return (spectrum, playable), notes


def loss_fn(output, batch):
    notes = batch[1]
    share = notes / notes.sum(-1, keepdim=True)  # planted: G205
    return -(share * F.log_softmax(output, -1)).sum(-1).mean()
