"""Speech synthesis: phonemes are aligned to frames by a forward pass over monotone paths. Planted: unreachable places
start at -inf, and logaddexp(-inf, -inf) has a NaN gradient, in FP32 as in any format."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class TextEncoder(nn.Module):
    def __init__(self, symbols=80, dim=128):
        super().__init__()
        self.emb = nn.Embedding(symbols, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, 5, padding=2) for _ in range(2))

    def forward(self, ids):
        x = self.emb(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.relu(conv(x))
        return x.transpose(1, 2)


def path_likelihood(log_p):
    """log of the sum over paths that stay or go on by one; log_p is (batch, frames, symbols)."""
    b, t, n = log_p.shape
    alpha = log_p.new_full((b, n), float("-inf"))
    alpha[:, 0] = log_p[:, 0, 0]
    for i in range(1, t):
        moved = F.pad(alpha[:, :-1], (1, 0), value=float("-inf"))
        alpha = torch.logaddexp(alpha, moved) + log_p[:, i]  # planted: G203|G204|G205
    return alpha[:, -1]


class Aligner(nn.Module):
    def __init__(self, mels=80, dim=128):
        super().__init__()
        self.text = TextEncoder(dim=dim)
        self.frames = nn.Sequential(nn.Linear(mels, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.scale = dim**-0.5

    def forward(self, ids, mel):
        k, q = self.text(ids), self.frames(mel)
        scores = (q * self.scale) @ k.transpose(1, 2)
        return F.log_softmax(scores.float(), dim=-1)


def make_model():
    return Aligner()


def make_batch():
    return (torch.randint(0, 80, (8, 12)), torch.randn(8, 40, 80)), None


def loss_fn(output, batch):
    return -path_likelihood(output).mean() / output.shape[1]
