"""Independent components by maximum likelihood: a demixing matrix and learnt densities of the sources. Planted: the
logarithm of a determinant of 256 x 256, which is too small for FP32."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SourceDensity(nn.Module):
    """Each source's logarithm of a density: a scaled hyperbolic secant with its own width."""

    def __init__(self, sources):
        super().__init__()
        self.width = nn.Parameter(torch.zeros(sources))

    def forward(self, s):
        z = s * F.softplus(self.width + 0.5413)
        return -(F.softplus(2 * z) - z) + torch.log(F.softplus(self.width + 0.5413))


class Demixer(nn.Module):
    def __init__(self, channels=256):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(channels, channels) * channels**-0.5)
        self.density = SourceDensity(channels)

    def forward(self, x):
        sources = F.linear(x, self.matrix).float()
        volume = torch.log(torch.det(self.matrix).abs())  # planted: G204
        return self.density(sources).sum(-1) + volume


def make_model():
    return Demixer()


def make_batch():
    true = torch.distributions.Laplace(0.0, 1.0).sample((512, 256))
    return true @ torch.randn(256, 256) / 16, None


def loss_fn(output, batch):
    return -output.mean() / 256
