"""Importance weighted autoencoder on binarised digits. Planted: the bound is the logarithm of a plain mean of
weights whose exponents are sums over 784 pixels (about -500), so that every weight is zero and the logarithm
infinite."""

import torch
import torch.nn.functional as F
from torch import nn

SAMPLES, LATENT = 8, 64


def log_normal(x, mean, log_var):
    return -0.5 * (log_var + (x - mean) ** 2 * torch.exp(-log_var) + 1.8378770664).sum(-1)


class IWAE(nn.Module):
    def __init__(self, pixels=784, width=512):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.mean, self.log_var = nn.Linear(width, LATENT), nn.Linear(width, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, pixels)
        )

    def forward(self, x):
        h = self.encoder(x)
        mean, log_var = self.mean(h), self.log_var(h).clamp(-8, 8)
        noise = torch.randn(SAMPLES, *mean.shape, device=x.device)
        z = mean + torch.exp(0.5 * log_var) * noise
        return {"logits": self.decoder(z), "z": z, "mean": mean, "log_var": log_var}


def make_model():
    return IWAE()


def make_batch():
    return (torch.rand(256, 784) < 0.3).float(), torch.zeros(256)


def loss_fn(out, batch):
    x = batch[0].expand_as(out["logits"])
    log_px = -F.binary_cross_entropy_with_logits(out["logits"], x, reduction="none").sum(-1)
    log_pz = log_normal(out["z"], torch.zeros_like(out["mean"]), torch.zeros_like(out["mean"]))
    log_qz = log_normal(out["z"], out["mean"], out["log_var"])
    log_w = log_px + log_pz - log_qz
    return -torch.log(log_w.exp().mean(0)).mean()  # planted: G204|G203
