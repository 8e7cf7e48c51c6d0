"""Sparse GP: whitened inducing points, Cholesky in FP64 with a jitter that FP64 holds."""

import torch
import torch.nn as nn


def rbf(a, b, ls):
    return torch.exp(-0.5 * ((a[:, None] - b[None]) / ls).square().sum(-1))


class SVGP(nn.Module):
    def __init__(self, d=4, m=64):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, d), nn.Tanh())
        self.z = nn.Parameter(torch.rand(m, d) * 2 - 1)
        self.log_ls = nn.Parameter(torch.zeros(d))
        self.mean = nn.Parameter(torch.zeros(m))
        self.raw_noise = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        with torch.autocast("cuda", enabled=False):
            f = self.body(x.float())
            ls = nn.functional.softplus(self.log_ls) + 1e-2
            kzz = rbf(self.z, self.z, ls).double()
            chol = torch.linalg.cholesky(
                kzz + 1e-8 * torch.eye(kzz.shape[0], dtype=torch.float64, device=x.device)
            ).float()
            kzx = rbf(self.z, f, ls)
            a = torch.linalg.solve_triangular(chol, kzx, upper=False)
            mu = a.t() @ self.mean
            var = (1 - a.square().sum(0)).clamp(min=1e-4)
            noise = nn.functional.softplus(self.raw_noise) + 1e-3
            return (
                0.5 * torch.log(noise) + 0.5 * ((y - mu).square() + var) / noise
            ).mean() + 0.5 * self.mean.square().sum() / y.numel()


def make_model():
    return SVGP()


def make_batch():
    return (torch.randn(256, 16), torch.randn(256)), None


def loss_fn(output, batch):
    return output
