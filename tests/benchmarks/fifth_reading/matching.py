"""SuperGlue-like matching: Sinkhorn in logarithms with a dustbin."""

import torch
from torch import nn


def log_sinkhorn(z, log_mu, log_nu, iters):
    u, v = torch.zeros_like(log_mu), torch.zeros_like(log_nu)
    for _ in range(iters):
        u = log_mu - torch.logsumexp(z + v.unsqueeze(1), dim=2)
        v = log_nu - torch.logsumexp(z + u.unsqueeze(2), dim=1)
    return z + u.unsqueeze(2) + v.unsqueeze(1)


class Matcher(nn.Module):
    def __init__(self, dim=128, iters=10):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.bin = nn.Parameter(torch.tensor(1.0))
        self.iters = iters

    def forward(self, a, b):
        x, y = self.enc(a), self.enc(b)
        s = torch.einsum("bnd,bmd->bnm", x, y) / x.shape[-1] ** 0.5
        batch, m, n = s.shape
        col = self.bin.expand(batch, m, 1)
        row = self.bin.expand(batch, 1, n + 1)
        z = torch.cat([torch.cat([s, col.to(s.dtype)], 2), row.to(s.dtype)], 1).float()
        ms, ns = z.new_tensor(float(m)), z.new_tensor(float(n))
        norm = -(ms + ns).log()
        log_mu = torch.cat([norm.expand(m), (ns.log() + norm)[None]]).expand(batch, -1)
        log_nu = torch.cat([norm.expand(n), (ms.log() + norm)[None]]).expand(batch, -1)
        return log_sinkhorn(z, log_mu, log_nu, self.iters) - norm


def make_model():
    return Matcher()


def make_batch():
    return (torch.randn(8, 64, 128), torch.randn(8, 64, 128)), torch.randint(0, 64, (8, 64))


def loss_fn(output, batch):
    return -output[:, :-1].gather(2, batch[1][..., None]).mean()
