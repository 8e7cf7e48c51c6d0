"""A convolutional VAE, KL by hand. Planted: the reconstruction is a binary cross entropy written out on a sigmoid in 16
bits, which rounds to one, so that the logarithm of the rest is infinite."""

import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self, latent=128):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(),
            nn.Conv2d(32, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(),
            nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.LeakyReLU(), nn.Flatten(),
        )  # fmt: skip
        self.stats = nn.Linear(128 * 64, 2 * latent)
        self.inner = nn.Linear(latent, 128 * 64)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, image):
        mu, log_var = self.stats(self.encoder(image)).chunk(2, dim=1)
        log_var = log_var.clamp(-10, 10)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        return self.decoder(F.leaky_relu(self.inner(z)).view(-1, 128, 8, 8)), mu, log_var


def make_model():
    return VAE()


def make_batch():
    return torch.rand(64, 3, 64, 64), torch.zeros(64)


def loss_fn(output, batch):
    seen, mu, log_var = output
    x = batch[0]
    rec = -(x * torch.log(seen) + (1 - x) * torch.log(1 - seen)).flatten(1).sum(1)  # planted: G204
    kl = -0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(1)
    return (rec + kl).mean()
