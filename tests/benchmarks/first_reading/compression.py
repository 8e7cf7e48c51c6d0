"""Learned image compression with a scale hyperprior. Planted: the share of a bin is a difference of two values of
the normal distribution's function, zero far from the mean, and its logarithm is taken without a lower bound."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class GDN(nn.Module):
    """Divisive normalisation across channels; the sum of squares starts at beta."""

    def __init__(self, channels, inverse=False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x):
        gamma, beta = self.gamma.clamp(min=0), self.beta.clamp(min=1e-3)
        norm = F.conv2d(x**2, gamma[..., None, None], beta)
        return x * torch.sqrt(norm) if self.inverse else x * torch.rsqrt(norm)


def down(inner, outer):
    return nn.Conv2d(inner, outer, 5, stride=2, padding=2)


def up(inner, outer):
    return nn.ConvTranspose2d(inner, outer, 5, stride=2, padding=2, output_padding=1)


class Hyperprior(nn.Module):
    def __init__(self, n=128, m=192):
        super().__init__()
        self.analysis = nn.Sequential(down(3, n), GDN(n), down(n, n), GDN(n), down(n, n), GDN(n), down(n, m))
        self.synthesis = nn.Sequential(up(m, n), GDN(n, True), up(n, n), GDN(n, True), up(n, n), GDN(n, True), up(n, 3))
        self.hyper_analysis = nn.Sequential(nn.Conv2d(m, n, 3, padding=1), nn.ReLU(), down(n, n), nn.ReLU(), down(n, n))
        self.hyper_synthesis = nn.Sequential(
            up(n, n), nn.ReLU(), up(n, n), nn.ReLU(), nn.Conv2d(n, m, 3, padding=1), nn.Softplus()
        )
        self.prior = nn.Parameter(torch.zeros(1, n, 1, 1))

    def share(self, y, scale):
        root = scale * math.sqrt(2)
        return 0.5 * (torch.erf((y + 0.5) / root) - torch.erf((y - 0.5) / root))

    def forward(self, image):
        y = self.analysis(image)
        z = self.hyper_analysis(y)
        z = z + torch.rand_like(z) - 0.5
        scale = self.hyper_synthesis(z).clamp(min=0.11)
        y = y + torch.rand_like(y) - 0.5
        return self.synthesis(y), self.share(y, scale), self.share(z, F.softplus(self.prior) + 0.1)


def make_model():
    return Hyperprior()


def make_batch():
    return torch.rand(8, 3, 256, 256), torch.zeros(8)


def loss_fn(output, batch):
    image, share_y, share_z = output
    pixels = batch[0].numel() / 3
    bits = -torch.log2(share_y).sum() / pixels  # planted: G204
    bits = bits - torch.log2(share_z).sum() / pixels  # planted: G204
    return bits + 0.01 * 255**2 * F.mse_loss(image, batch[0])
