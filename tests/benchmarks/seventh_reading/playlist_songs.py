"""Playlists continued: cosines between what was heard and songs, counts and norms floored. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Playlist(nn.Module):
    def __init__(self, songs=20000, dim=96):
        super().__init__()
        self.song = nn.Embedding(songs, dim, padding_idx=0)
        self.mix = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def pooled(self, heard):
        mask = (heard > 0).unsqueeze(-1)
        total = (self.song(heard) * mask).sum(1)
        return total / mask.sum(1).clamp(min=1)

    def forward(self, heard, candidates):
        taste = self.pooled(heard)
        taste = (taste + self.mix(taste)).float()
        song = self.song(candidates).float()
        dot = (taste[:, None] * song).sum(-1)
        length = taste.square().sum(-1).clamp(min=1e-12).sqrt()[:, None]
        other = song.square().sum(-1).clamp(min=1e-12).sqrt()
        return dot / (length * other) * self.log_scale.clamp(max=4.6).exp()


def make_model():
    return Playlist()


def make_batch():
    heard = torch.randint(1, 20000, (256, 30)) * (torch.arange(30) < torch.randint(0, 31, (256, 1)))
    return (heard, torch.randint(1, 20000, (256, 64))), torch.zeros(256, dtype=torch.long)


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
