"""Ensembles of wind speeds post-processed: quantiles and a truncated normal distribution by a network over
stations, scored by the continuous ranked probability. Careful: the score of a truncated normal with its share
above zero floored, spreads with an eps under the root, stations counted in FP32."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def normal_cdf(x):
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


def normal_pdf(x):
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def truncated_crps(mean, scale, speed):
    """Of a normal distribution cut at zero, in closed form."""
    share = normal_cdf(mean / scale).clamp(min=1e-3)
    z = (speed - mean) / scale
    first = z * share * (2 * normal_cdf(z) + share - 2)
    second = 2 * normal_pdf(z) * share
    third = normal_cdf(math.sqrt(2.0) * mean / scale) / math.sqrt(math.pi)
    return scale * (first + second - third) / share.square()


def fair_crps(members, speed):
    """Of the members themselves, without the bias of their number."""
    n = members.shape[-1]
    to_truth = (members - speed[..., None]).abs().mean(-1)
    among = (members[..., :, None] - members[..., None, :]).abs().sum((-2, -1)) / (n * (n - 1))
    return to_truth - 0.5 * among


class StationMixer(nn.Module):
    """Means over the neighbours of each station, counted as the edges come."""

    def __init__(self, dim):
        super().__init__()
        self.send, self.own = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, edges):
        source, target = edges
        count = torch.zeros(x.shape[1], device=x.device).index_add_(0, target, torch.ones_like(target, dtype=x.dtype))
        total = torch.zeros_like(x).index_add_(1, target, self.send(x)[:, source])
        return F.gelu(self.own(x) + total / count.clamp(min=1.0)[:, None])


class PostProcess(nn.Module):
    def __init__(self, stations=96, dim=64):
        super().__init__()
        self.place = nn.Embedding(stations, dim)
        self.first = nn.Linear(4, dim)
        self.mix = nn.ModuleList(StationMixer(dim) for _ in range(2))
        self.out = nn.Linear(dim, 4)

    def forward(self, members, edges):
        mean = members.mean(-1)
        spread = torch.sqrt(members.var(-1) + 1e-6)
        x = torch.stack([mean, spread, members.amax(-1), torch.log1p(mean.clamp(min=0.0))], dim=-1)
        h = self.first(x) + self.place.weight
        for layer in self.mix:
            h = layer(h, edges)
        shift, log_scale, stretch, bias = self.out(h).unbind(-1)
        scale = F.softplus(log_scale) * spread + 0.1
        adjusted = mean[..., None] + bias[..., None] + F.softplus(stretch)[..., None] * (members - mean[..., None])
        return mean + shift, scale, F.relu(adjusted)


def make_model():
    return PostProcess()


def make_batch():
    truth = 4.0 * torch.rand(16, 96).sqrt() * (torch.randn(16, 1) * 0.3).exp()
    members = (truth[..., None] + 1.5 * torch.randn(16, 96, 20)).clamp(min=0.0)
    return (members, torch.randint(0, 90, (2, 500))), truth


def loss_fn(output, batch):
    mean, scale, members = output
    return truncated_crps(mean, scale, batch[1]).mean() + fair_crps(members, batch[1]).mean()
