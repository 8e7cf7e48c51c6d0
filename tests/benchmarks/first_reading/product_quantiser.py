"""A speech encoder with residual vector quantisation, codebooks as moving averages. Planted: the sums are divided by
cluster sizes that start at zero and stay there for a code that is never used."""

import torch
import torch.nn.functional as F
from torch import nn


class Quantiser(nn.Module):
    def __init__(self, codes=1024, width=128, decay=0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.randn(codes, width))
        self.register_buffer("sums", torch.randn(codes, width))
        self.register_buffer("sizes", torch.zeros(codes))

    def forward(self, x):
        flat = x.detach().float().flatten(0, 1)
        nearest = torch.cdist(flat, self.codes).argmin(1)
        found = F.embedding(nearest, self.codes).view_as(x)
        hot = F.one_hot(nearest, self.codes.shape[0]).float()
        self.sizes.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.codes.copy_(self.sums / self.sizes[:, None])  # planted: G205
        commit = F.mse_loss(x.float(), found)
        return x + (found - x).detach(), commit


class Codec(nn.Module):
    def __init__(self, width=128, layers=4):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 32, 8, 4, 2), nn.ELU(), nn.Conv1d(32, 64, 8, 4, 2), nn.ELU(), nn.Conv1d(64, width, 8, 4, 2)
        )
        self.quantisers = nn.ModuleList(Quantiser(width=width) for _ in range(layers))
        self.decoder = nn.Sequential(
            nn.ConvTranspose1d(width, 64, 8, 4, 2), nn.ELU(), nn.ConvTranspose1d(64, 32, 8, 4, 2), nn.ELU(),
            nn.ConvTranspose1d(32, 1, 8, 4, 2),
        )  # fmt: skip

    def forward(self, wave):
        left = self.encoder(wave).transpose(1, 2)
        total, commits = torch.zeros_like(left), 0.0
        for quantiser in self.quantisers:
            found, commit = quantiser(left)
            total, left, commits = total + found, left - found.detach(), commits + commit
        return self.decoder(total.transpose(1, 2)), commits


def make_model():
    return Codec()


def make_batch():
    wave = torch.randn(16, 1, 8192) * 0.1
    return wave, torch.zeros(16)


def loss_fn(output, batch):
    wave, commits = output
    return F.l1_loss(wave, batch[0]) + 0.25 * commits
