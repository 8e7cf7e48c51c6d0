"""Careful: a VQ tokenizer with cosine codes, straight-through, commitment, EMA of usage in FP32."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Tokenizer(nn.Module):
    def __init__(self, codes=1024, width=256):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv1d(80, width, 4, 2, 1), nn.GELU(), nn.Conv1d(width, width, 4, 2, 1))
        self.dec = nn.Sequential(
            nn.ConvTranspose1d(width, width, 4, 2, 1), nn.GELU(), nn.ConvTranspose1d(width, 80, 4, 2, 1)
        )
        self.codes = nn.Parameter(F.normalize(torch.randn(codes, width), dim=-1))
        self.register_buffer("usage", torch.ones(codes))

    def forward(self, mel):
        z = F.normalize(self.enc(mel).transpose(1, 2), dim=-1)
        book = F.normalize(self.codes, dim=-1)
        idx = (z @ book.t()).argmax(-1)
        q = book[idx]
        if self.training:
            with torch.no_grad():
                self.usage.mul_(0.99).add_(torch.bincount(idx.flatten(), minlength=len(self.usage)).float(), alpha=0.01)
        commit = F.mse_loss(z, q.detach()) + 0.25 * F.mse_loss(q, z.detach())
        q = z + (q - z).detach()
        return self.dec(q.transpose(1, 2)), commit


def make_model():
    return Tokenizer()


def make_batch():
    torch.manual_seed(0)
    return (torch.randn(16, 80, 512),)


def loss_fn(out, batch):
    recon, commit = out
    return F.l1_loss(recon, batch[0]) + commit
