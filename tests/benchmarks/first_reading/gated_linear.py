"""Gated linear attention in chunks, by hand. Planted: inside a chunk the keys are divided by the product of their
decays, written as an exponential of a positive sum of up to 64 logarithms, which has no bound."""

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 64


class GatedLinearAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.decay = nn.Sequential(nn.Linear(width, 16, bias=False), nn.Linear(16, width))
        self.gate, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(self.head)

    def forward(self, x):
        b, t, _ = x.shape

        def chunks(y):
            return y.view(b, t // CHUNK, CHUNK, self.heads, self.head).permute(1, 0, 3, 2, 4)

        q, k, v = chunks(self.q(x)), chunks(self.k(x)), chunks(self.v(x))
        logs = chunks(F.logsigmoid(self.decay(x).float())).cumsum(-2)
        later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).tril()
        state = x.new_zeros(b, self.heads, self.head, self.head)
        outs = []
        for n in range(t // CHUNK):
            to_here, whole = logs[n], logs[n][:, :, -1:]
            qs = q[n] * to_here.exp()
            ks = k[n] * torch.exp(-to_here)  # planted: G203
            inside = (qs @ ks.transpose(-1, -2)).masked_fill(~later, 0) @ v[n]
            outs.append(inside + qs @ state)
            carried = k[n] * (whole - to_here).exp()
            state = state * whole.transpose(-1, -2).exp() + carried.transpose(-1, -2) @ v[n]
        y = torch.stack(outs, 1).permute(0, 1, 3, 2, 4).reshape(b, t, self.heads, self.head)
        y = self.norm(y).flatten(-2)
        return self.out(y * F.silu(self.gate(x)))


class Model(nn.Module):
    def __init__(self, vocabulary=16000, width=512, heads=4, depth=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))
        self.mixers = nn.ModuleList(GatedLinearAttention(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x)


def make_model():
    return Model()


def make_batch():
    ids = torch.randint(0, 16000, (4, 513))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
