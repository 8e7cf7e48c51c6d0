"""A variational autoencoder: strided convolutions down, transposed ones up, batch norms; 64 images of 256 x 256."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, LATENT = 64, 256, 256
WIDTHS = (64, 128, 256, 512)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        down, inputs = [], 3
        for width in WIDTHS:
            down += [nn.Conv2d(inputs, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs = width
        self.encoder = nn.Sequential(*down)
        side = SIDE // 2 ** len(WIDTHS)
        self.to_latent = nn.Linear(inputs * side * side, 2 * LATENT)
        self.from_latent = nn.Linear(LATENT, inputs * side * side)
        up = []
        for width in reversed((32, *WIDTHS[:-1])):
            up += [nn.ConvTranspose2d(inputs, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs = width
        self.decoder = nn.Sequential(nn.Unflatten(1, (WIDTHS[-1], side, side)), *up, nn.Conv2d(inputs, 3, 3, padding=1))

    def forward(self, images):
        mean, log_variance = self.to_latent(self.encoder(images).flatten(1)).chunk(2, dim=1)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return torch.sigmoid(self.decoder(self.from_latent(latent))), mean, log_variance


def make_model():
    return VAE()


def make_batch():
    images = torch.rand(BATCH, 3, SIDE, SIDE)
    return images, images


def loss_fn(output, batch):
    images, mean, log_variance = output
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
    return F.mse_loss(images, batch[1], reduction="sum") / images.shape[0] + divergence
