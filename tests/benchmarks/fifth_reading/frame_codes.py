"""VQ-VAE for mel frames, codebook learned by exponential moving averages. Planted: EMA kept in BF16: decay 0.999."""

import torch
import torch.nn.functional as F
from torch import nn


class EMAQuantizer(nn.Module):
    def __init__(self, n_codes=512, dim=64, decay=0.999, eps=1e-5):
        super().__init__()
        self.n_codes, self.decay, self.eps = n_codes, decay, eps
        codes = torch.randn(n_codes, dim)
        self.register_buffer("codebook", codes)
        self.register_buffer("usage", torch.ones(n_codes, dtype=torch.bfloat16))
        self.register_buffer("codes_sum", codes.clone())

    @torch.no_grad()
    def _update(self, flat, onehot):
        counts = onehot.sum(0)
        self.usage = self.decay * self.usage + (1 - self.decay) * counts.to(self.usage.dtype)  # planted: G220
        self.codes_sum.mul_(self.decay).add_(onehot.t() @ flat, alpha=1 - self.decay)
        n = self.usage.float().sum()
        size = (self.usage.float() + self.eps) / (n + self.n_codes * self.eps) * n
        self.codebook.copy_(self.codes_sum / size.unsqueeze(1))

    def forward(self, z):
        flat = z.reshape(-1, z.shape[-1]).float()
        d = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codebook.t() + self.codebook.pow(2).sum(1)
        idx = d.argmin(1)
        q = F.embedding(idx, self.codebook).view_as(z)
        if self.training:
            self._update(flat, F.one_hot(idx, self.n_codes).to(flat.dtype))
        commit = F.mse_loss(z, q.detach())
        return z + (q - z).detach(), commit


class MelVQ(nn.Module):
    def __init__(self, mels=80, dim=64):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv1d(mels, 256, 4, 2, 1), nn.ReLU(), nn.Conv1d(256, dim, 3, 1, 1))
        self.vq = EMAQuantizer(dim=dim)
        self.dec = nn.Sequential(nn.Conv1d(dim, 256, 3, 1, 1), nn.ReLU(), nn.ConvTranspose1d(256, mels, 4, 2, 1))

    def forward(self, mel):
        z = self.enc(mel).transpose(1, 2)
        q, commit = self.vq(z)
        return self.dec(q.transpose(1, 2)), commit


def make_model():
    return MelVQ()


def make_batch():
    x = torch.randn(8, 80, 128)
    return x, x


def loss_fn(output, batch):
    rec, commit = output
    return F.l1_loss(rec, batch[1]) + 0.25 * commit
