"""Open-set recognition by von Mises-Fisher mixtures on the sphere, a proxy anchor loss and a hypersphere uniformity
term. Careful: unit vectors by F.normalize in FP32, sums of exponentials by logsumexp, uniformity of pairs without
themselves."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Small(nn.Module):
    def __init__(self, dim=64):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 32), (32, 64), (64, 128)))
        self.norms = nn.ModuleList(nn.GroupNorm(8, n) for n in (32, 64, 128))
        self.fc = nn.Linear(128, dim)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.silu(norm(conv(x)))
        return F.normalize(self.fc(x.mean((2, 3))).float(), dim=-1)


class Proxies(nn.Module):
    def __init__(self, classes=32, dim=64, alpha=32.0, margin=0.1):
        super().__init__()
        self.body = Small(dim)
        self.proxy = nn.Parameter(torch.randn(classes, dim))
        self.alpha, self.margin = alpha, margin

    def forward(self, x):
        z = self.body(x)
        with torch.autocast("cuda", enabled=False):
            return z, z @ F.normalize(self.proxy, dim=-1).t()


def proxy_anchor(cos, target, alpha=32.0, margin=0.1):
    own = F.one_hot(target, cos.shape[1]).bool()
    low = torch.finfo(cos.dtype).min
    pull = (-alpha * (cos - margin)).masked_fill(~own, low)
    push = (alpha * (cos + margin)).masked_fill(own, low)
    present = own.any(0)
    zero = cos.new_zeros(1, cos.shape[1])
    pulled = torch.logsumexp(torch.cat([zero, pull]), 0)
    pushed = torch.logsumexp(torch.cat([zero, push]), 0)
    return pulled.sum() / present.sum().clamp(min=1) + pushed.mean()


def uniformity(z, t=2.0):
    square = torch.pdist(z).square()
    return torch.logsumexp(-t * square, 0) - torch.log(torch.tensor(float(square.numel()), device=z.device))


def make_model():
    return Proxies()


def make_batch():
    return torch.randn(64, 3, 48, 48), torch.randint(0, 32, (64,))


def loss_fn(output, batch):
    z, cos = output
    return proxy_anchor(cos, batch[1]) + 0.1 * uniformity(z)
