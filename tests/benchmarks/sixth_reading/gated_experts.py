"""Noisy top-k experts with the losses of importance and load, and a loss on the router's logits. Careful: shares come
from a softmax in FP32, so that eps of 1e-10 is in FP32; experts run on rows gathered by index."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Expert(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.a, self.b = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class NoisyTopK(nn.Module):
    def __init__(self, dim, experts, k):
        super().__init__()
        self.k = k
        self.w, self.noise = nn.Linear(dim, experts, bias=False), nn.Linear(dim, experts, bias=False)

    def forward(self, x):
        clean = self.w(x).float()
        std = F.softplus(self.noise(x).float()) + 1e-2
        logits = clean + torch.randn_like(clean) * std
        top, index = logits.topk(self.k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, index, torch.softmax(top, dim=-1))
        return gates, index, logits


def cv_squared(x, eps=1e-10):
    x = x.float()
    return x.var() / (x.mean() ** 2 + eps)


class Layer(nn.Module):
    def __init__(self, dim=128, experts=8, k=2):
        super().__init__()
        self.router = NoisyTopK(dim, experts, k)
        self.experts = nn.ModuleList(Expert(dim, 2 * dim) for _ in range(experts))

    def forward(self, x):
        gates, _, logits = self.router(x)
        out = sum(gates[:, i, None].to(x.dtype) * expert(x) for i, expert in enumerate(self.experts))
        importance, load = gates.sum(0), (gates > 0).float().sum(0)
        z = torch.logsumexp(logits, dim=-1).square().mean()
        return out, cv_squared(importance) + cv_squared(load) + 1e-3 * z


class Network(nn.Module):
    def __init__(self, inputs=64, dim=128, classes=16):
        super().__init__()
        self.embed, self.layer = nn.Linear(inputs, dim), Layer(dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        h = self.embed(x)
        made, extra = self.layer(h)
        return self.head(self.norm(h + made)), extra


def make_model():
    return Network()


def make_batch():
    return torch.randn(512, 64), torch.randint(0, 16, (512,))


def loss_fn(output, batch):
    logits, extra = output
    return F.cross_entropy(logits, batch[1]) + 0.01 * extra
