"""W-MSE: embeddings whitened by an SVD of their covariance, inverse root of eigenvalues without a floor. Planted:
inverse root of eigenvalues that rounding makes zero or negative."""

import torch
import torch.nn as nn


class Whitening(nn.Module):
    def forward(self, z):
        z = z.float() - z.float().mean(0)
        cov = z.T @ z / (z.shape[0] - 1)
        vals, vecs = torch.linalg.eigh(cov.float())
        return z @ vecs.to(z.dtype) * vals.to(z.dtype).rsqrt()  # planted: G206


class WMSE(nn.Module):
    def __init__(self, dim=64):
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, dim),
        )
        self.white = Whitening()

    def forward(self, a, b):
        return self.white(self.enc(a)), self.white(self.enc(b))


def make_model():
    return WMSE()


def make_batch():
    return (torch.randn(128, 3, 32, 32), torch.randn(128, 3, 32, 32)), None


def loss_fn(output, batch):
    return (output[0] - output[1]).pow(2).sum(1).mean()
