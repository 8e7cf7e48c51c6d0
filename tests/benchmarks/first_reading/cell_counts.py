"""A variational autoencoder of single-cell counts with a negative binomial likelihood (scVI). Planted: the encoder
reads the logarithm of the counts, most of which are zero."""

import torch
import torch.nn.functional as F
from torch import nn

GENES = 2000


def block(inner, outer):
    return nn.Sequential(nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU(), nn.Dropout(0.1))


class CountVAE(nn.Module):
    def __init__(self, width=256, latent=16):
        super().__init__()
        self.encoder = nn.Sequential(block(GENES, width), block(width, width))
        self.mean, self.log_var = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decoder = block(latent, width)
        self.share, self.drop = nn.Linear(width, GENES), nn.Linear(width, GENES)
        self.log_theta = nn.Parameter(torch.randn(GENES))

    def forward(self, counts):
        library = counts.sum(1, keepdim=True)
        h = self.encoder(torch.log(counts))  # planted: G204
        mean, log_var = self.mean(h), self.log_var(h).clamp(-10, 10)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        d = self.decoder(z)
        rate = library * torch.softmax(self.share(d), -1)
        return {"rate": rate, "drop": self.drop(d), "mean": mean, "log_var": log_var, "theta": self.log_theta.exp()}


def zero_inflated(x, rate, theta, drop, eps=1e-8):
    """The logarithm of the likelihood of counts, in logits of the dropout."""
    soft = F.softplus(-drop)
    log_theta_rate = torch.log(theta + rate + eps)
    shared = -drop + theta * (torch.log(theta + eps) - log_theta_rate)
    zero = F.softplus(shared) - soft
    other = (
        -soft + shared + x * (torch.log(rate + eps) - log_theta_rate)
        + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    )  # fmt: skip
    return torch.where(x < eps, zero, other)


def make_model():
    return CountVAE()


def make_batch():
    counts = torch.poisson(torch.rand(256, GENES) * 2)
    return counts, torch.zeros(256)


def loss_fn(out, batch):
    likelihood = zero_inflated(batch[0], out["rate"], out["theta"], out["drop"].float()).sum(-1)
    mean, log_var = out["mean"].float(), out["log_var"].float()
    divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)
    return (divergence - likelihood).mean()
