"""A VQ-VAE of images whose codebook follows its assignments by moving averages. Careful: the averages are FP32, counts
are smoothed so that none is zero, distances are taken in FP32, straight-through gradient."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Codebook(nn.Module):
    def __init__(self, codes=512, dim=64, decay=0.99, eps=1e-5):
        super().__init__()
        self.decay, self.eps = decay, eps
        start = torch.randn(codes, dim)
        self.register_buffer("codes", start)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", start.clone())

    def forward(self, z):
        with torch.autocast("cuda", enabled=False):
            flat = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            far = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codes.t() + self.codes.pow(2).sum(1)
            index = far.argmin(1)
            if self.training:
                with torch.no_grad():
                    chosen = F.one_hot(index, self.codes.shape[0]).float()
                    self.counts.mul_(self.decay).add_(chosen.sum(0), alpha=1 - self.decay)
                    self.sums.mul_(self.decay).add_(chosen.t() @ flat, alpha=1 - self.decay)
                    total = self.counts.sum()
                    smooth = (self.counts + self.eps) / (total + self.codes.shape[0] * self.eps) * total
                    self.codes.copy_(self.sums / smooth[:, None])
            b, _, h, w = z.shape
            q = F.embedding(index, self.codes).reshape(b, h, w, -1).permute(0, 3, 1, 2)
            commit = F.mse_loss(z.float(), q.detach())
            return z + (q - z).detach(), commit


class VQVAE(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(3, ch, 4, 2, 1), nn.ReLU(), nn.Conv2d(ch, ch, 4, 2, 1), nn.ReLU(), nn.Conv2d(ch, 64, 1)
        )
        self.book = Codebook()
        self.dec = nn.Sequential(
            nn.Conv2d(64, ch, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(ch, ch, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(ch, 3, 4, 2, 1),
        )

    def forward(self, x):
        q, commit = self.book(self.enc(x))
        return self.dec(q), commit


def make_model():
    return VQVAE()


def make_batch():
    return torch.rand(16, 3, 64, 64), None


def loss_fn(output, batch):
    made, commit = output
    return F.mse_loss(made, batch[0]) + 0.25 * commit
