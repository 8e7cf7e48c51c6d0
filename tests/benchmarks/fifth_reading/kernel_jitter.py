"""Deep kernel learning: exact GP marginal likelihood on learned features. Planted: a jitter of 1e-9 is lost beside 1
in FP32."""

import math

import torch
import torch.nn as nn


class RBF(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_ls = nn.Parameter(torch.zeros(()))
        self.log_var = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        d2 = (x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1)
        return self.log_var.clamp(-5, 5).exp() * torch.exp(-0.5 * d2 / self.log_ls.clamp(-5, 5).exp() ** 2)


class DKL(nn.Module):
    jitter = 1e-9

    def __init__(self, d_in=16, feat=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d_in, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, feat))
        self.kernel = RBF()

    def forward(self, x, y):
        k = self.kernel(self.body(x))
        n = k.shape[0]
        k = k + self.jitter * torch.eye(n, device=k.device)  # planted: G220
        chol = torch.linalg.cholesky(k.float())
        alpha = torch.cholesky_solve(y[:, None], chol)
        return 0.5 * (y @ alpha.squeeze(1)) + chol.diagonal().log().sum() + 0.5 * n * math.log(2 * math.pi)


def make_model():
    return DKL()


def make_batch():
    return (torch.randn(128, 16), torch.randn(128)), None


def loss_fn(output, batch):
    return output / 128
