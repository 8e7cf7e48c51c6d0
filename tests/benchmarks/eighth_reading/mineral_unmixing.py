"""Hyperspectral unmixing by an autoencoder whose decoder's columns are the minerals' spectra; spectra that are
alike are pushed apart by their angles. Planted: the angle of each spectrum with itself is the arc cosine of
one, of which rounding makes more."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, bands, minerals):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3), nn.LeakyReLU(0.02), nn.MaxPool1d(2), nn.Conv1d(16, 8, 5, padding=2)
        )
        self.out = nn.Linear(8 * (bands // 2), minerals)

    def forward(self, spectra):
        h = F.leaky_relu(self.conv(spectra.unsqueeze(1)), 0.02)
        return torch.softmax(self.out(h.flatten(1)), dim=-1)


class Unmixer(nn.Module):
    def __init__(self, bands=128, minerals=6):
        super().__init__()
        self.encoder = Encoder(bands, minerals)
        self.raw = nn.Parameter(torch.randn(minerals, bands))

    @property
    def endmembers(self):
        return torch.sigmoid(self.raw)

    def forward(self, spectra):
        shares = self.encoder(spectra)
        e = self.endmembers
        unit = e / e.norm(dim=-1, keepdim=True)
        angles = torch.acos(unit @ unit.T)  # planted: G213
        return shares @ e, shares, angles


def spectral_angle(a, b, eps=1e-4):
    cosine = F.cosine_similarity(a, b, dim=-1).clamp(-1 + eps, 1 - eps)
    return torch.acos(cosine)


def make_model():
    return Unmixer()


def make_batch():
    grid = torch.linspace(0, 1, 128)
    pure = 0.5 + 0.4 * torch.sin(6.28 * (grid * torch.arange(1, 7)[:, None] + torch.rand(6, 1)))
    shares = torch.distributions.Dirichlet(torch.ones(6)).sample((256,))
    spectra = shares @ pure + 0.01 * torch.randn(256, 128)
    return spectra.clamp(min=1e-3), None


def loss_fn(output, batch):
    rebuilt, shares, angles = output
    apart = torch.triu(torch.exp(-5.0 * angles), diagonal=1).sum() / 15
    sparse = shares.clamp(min=1e-6).sqrt().sum(-1).mean()
    return spectral_angle(rebuilt, batch[0]).mean() + F.mse_loss(rebuilt, batch[0]) + 0.05 * apart + 1e-3 * sparse
