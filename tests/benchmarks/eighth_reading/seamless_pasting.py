"""Pictures pasted without seams: a network predicts gradients and weights, and conjugate gradients solve for the
picture within the model. Planted: the solver goes on when nothing is left of the residual, and divides zero by
zero."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def gradient(u):
    gx = F.pad(u[..., :, 1:] - u[..., :, :-1], (0, 1))
    gy = F.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))
    return gx, gy


def divergence(gx, gy):
    dx = gx - F.pad(gx[..., :, :-1], (1, 0))
    dy = gy - F.pad(gy[..., :-1, :], (0, 0, 1, 0))
    return dx + dy


def inner(a, b):
    return (a * b).sum((-2, -1), keepdim=True)


def solve(weight, right, steps):
    """Conjugate gradients for (weight - laplacian) u = right."""
    u = torch.zeros_like(right)
    r = right
    p = r
    rs = inner(r, r)
    for _ in range(steps):
        ap = weight * p - divergence(*gradient(p))
        alpha = rs / inner(p, ap)  # planted: G205
        u = u + alpha * p
        r = r - alpha * ap
        new = inner(r, r)
        p = r + new / rs * p
        rs = new
    return u


class Paster(nn.Module):
    def __init__(self, width=32, steps=96):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )
        self.steps = steps

    def forward(self, background, pasted, mask):
        out = self.net(torch.cat([background, pasted, mask], 1))
        weight = 1.0 + 4.0 * (1 - mask) + F.softplus(out[:, :1])
        gx, gy = gradient(mask * pasted + (1 - mask) * background)
        gx, gy = gx + 0.1 * torch.tanh(out[:, 1:2]), gy + 0.1 * torch.tanh(out[:, 2:])
        return solve(weight, weight * background - divergence(gx, gy), self.steps)


def make_model():
    return Paster()


def make_batch():
    background, pasted = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16)
    background[0] = 0.0  # a black frame, pasted with itself
    pasted[0] = 0.0
    mask = torch.zeros(4, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    return (background, pasted, mask), torch.where(mask > 0, pasted, background)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
