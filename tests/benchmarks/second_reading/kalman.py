"""A filter of Kalman whose observations come from a network. Planted: the innovation's covariance comes from products
that autocast puts into 16 bits, and its inverse has no kernel there."""

import torch
import torch.nn.functional as F
from torch import nn


class KalmanNet(nn.Module):
    def __init__(self, seen=256, state=16, observed=8):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(seen, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, observed)
        )
        self.noise = nn.Linear(seen, observed)
        self.move = nn.Parameter(torch.eye(state) + 0.01 * torch.randn(state, state))
        self.look = nn.Parameter(torch.randn(observed, state) * 0.2)
        self.log_q = nn.Parameter(torch.full((state,), -3.0))
        self.read = nn.Linear(state, 2)

    def forward(self, frames):
        b, steps, _ = frames.shape
        z, r = self.net(frames), torch.exp(self.noise(frames).clamp(-5, 5))
        mean = frames.new_zeros(b, len(self.log_q), 1)
        eye = torch.eye(len(self.log_q), device=frames.device)
        covariance = eye.expand(b, -1, -1)
        out = []
        for t in range(steps):
            mean = self.move @ mean
            covariance = self.move @ covariance @ self.move.t() + torch.diag(self.log_q.exp())
            inner = self.look @ covariance @ self.look.t()
            inner = inner + torch.diag_embed(r[:, t]).to(inner.dtype)
            gain = covariance @ self.look.t() @ torch.linalg.inv(inner)  # planted: G404
            mean = mean + gain @ (z[:, t, :, None] - self.look @ mean)
            covariance = (eye - gain @ self.look) @ covariance
            out.append(self.read(mean.squeeze(-1)))
        return torch.stack(out, 1)


def make_model():
    return KalmanNet()


def make_batch():
    return torch.randn(64, 8, 256), torch.randn(64, 8, 2)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
