"""A masked autoencoder of spectra: mask tokens everywhere, then the encoder's outputs written where patches were kept.
Planted: under autocast the outputs are 16-bit and the tokens FP32, and assignment by a boolean mask raises."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Layer(nn.TransformerEncoderLayer):
    def __init__(self, dim):
        super().__init__(dim, 4, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)


class MaskedSpectra(nn.Module):
    def __init__(self, patch=16, dim=128, inner=64, patches=64):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch, dim)
        self.pos = nn.Parameter(torch.randn(patches, dim) * 0.02)
        self.encoder = nn.ModuleList(Layer(dim) for _ in range(2))
        self.to_inner = nn.Linear(dim, inner)
        self.token = nn.Parameter(torch.randn(inner) * 0.02)
        self.inner_pos = nn.Parameter(torch.randn(patches, inner) * 0.02)
        self.decoder = Layer(inner)
        self.out = nn.Linear(inner, patch)

    def forward(self, x, keep):
        b, n = keep.shape
        x = self.embed(x.reshape(b, n, self.patch)) + self.pos
        seen = x[keep].reshape(b, -1, x.shape[-1])
        for layer in self.encoder:
            seen = layer(seen)
        full = self.token.expand(b, n, -1).clone()
        full[keep] = self.to_inner(seen).flatten(0, 1)  # planted: G301
        return self.out(self.decoder(full + self.inner_pos))


def make_model():
    return MaskedSpectra()


def make_batch():
    order = torch.rand(32, 64).argsort(1)
    x = torch.randn(32, 1024)
    return (x, order < 16), x.reshape(32, 64, 16)


def loss_fn(output, batch):
    hidden = ~batch[0][1]
    return F.mse_loss(output[hidden].float(), batch[1][hidden])
