"""Gaussian process regression on learnt features. Planted: squared distances by the expanded square, of features in
16 bits, which leaves no positive definite kernel for the Cholesky factor."""

import math

import torch
from torch import nn


class DeepKernel(nn.Module):
    def __init__(self, inputs=16, width=256, features=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, features)
        )
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.log_noise = nn.Parameter(torch.tensor(-9.0))

    def distances(self, z):
        square = torch.einsum("nd,nd->n", z, z)
        return square[:, None] + square[None, :] - 2 * z @ z.T  # planted: G218

    def forward(self, x, y):
        z = 3 * self.net(x)
        kernel = torch.exp(-0.5 * self.distances(z) * torch.exp(-2 * self.log_scale))
        kernel = kernel + torch.exp(self.log_noise) * torch.eye(len(x), device=x.device)
        factor = torch.linalg.cholesky(kernel)
        solved = torch.cholesky_solve(y[:, None], factor)
        quadratic = 0.5 * (y[:, None] * solved).sum()
        return (quadratic + factor.diagonal().log().sum() + 0.5 * len(x) * math.log(2 * math.pi)) / len(x)


def make_model():
    return DeepKernel()


def make_batch():
    x = torch.randn(256, 16)
    return {"x": x, "y": torch.sin(x.sum(-1))}


def loss_fn(output, batch):
    return output
