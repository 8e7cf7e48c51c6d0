"""Motor imagery by covariances of EEG on their manifold (SPDNet): bilinear maps, the logarithm of a matrix, a
classifier. Planted: a covariance of fewer samples than channels has eigenvalues of zero, which rounding takes
below."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def covariance(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred @ centred.transpose(-1, -2) / (x.shape[-1] - 1)


class BiMap(nn.Module):
    """C -> W C W^T with rows of W orthonormal at the start."""

    def __init__(self, size, out):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(size, out)).Q.T.contiguous())

    def forward(self, c):
        return self.weight @ c @ self.weight.T


class LogEig(nn.Module):
    """The matrix logarithm by the eigenvectors."""

    def forward(self, c):
        values, vectors = torch.linalg.eigh(c)
        logs = values.log()  # planted: G204
        return (vectors * logs.unsqueeze(-2)) @ vectors.transpose(-1, -2)


class UpperTriangle(nn.Module):
    """What is above the diagonal times the root of two, so that norms stay."""

    def __init__(self, size):
        super().__init__()
        rows, columns = torch.triu_indices(size, size)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("weight", torch.where(rows == columns, 1.0, 2.0**0.5))

    def forward(self, c):
        return c[..., self.rows, self.columns] * self.weight


class Imagery(nn.Module):
    def __init__(self, channels=32, size=24, classes=4, filters=2):
        super().__init__()
        self.spectral = nn.Conv2d(1, filters, (1, 9), padding=(0, 4), bias=False)
        self.map = BiMap(channels, size)
        self.log, self.flatten = LogEig(), UpperTriangle(size)
        self.head = nn.Linear(filters * size * (size + 1) // 2, classes)

    def forward(self, windows):
        bands = self.spectral(windows.unsqueeze(1))
        c = covariance(bands)
        tangent = self.flatten(self.log(self.map(c)))
        return self.head(tangent.flatten(1))


def make_model():
    return Imagery()


def make_batch():
    windows = torch.randn(16, 32, 20)
    return windows, torch.randint(0, 4, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], label_smoothing=0.1)
