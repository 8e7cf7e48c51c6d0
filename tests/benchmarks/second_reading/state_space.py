"""A state space model in chunks: decays as differences of cumulative sums under a causal mask, then exponentials of
what is never above zero. Careful."""

import torch
import torch.nn.functional as F
from torch import nn


def segments(a):
    total = a.cumsum(-1)
    gaps = total[..., :, None] - total[..., None, :]
    keep = torch.ones(a.shape[-1], a.shape[-1], dtype=torch.bool, device=a.device).tril()
    return gaps.masked_fill(~keep, -torch.inf)


class Mixer(nn.Module):
    def __init__(self, width, heads=8, state=32, chunk=64):
        super().__init__()
        self.heads, self.state, self.chunk = heads, state, chunk
        self.inner = nn.Linear(width, 2 * width + 2 * state + heads)
        self.log_a = nn.Parameter(torch.log(torch.arange(1, heads + 1).float()))
        self.step = nn.Parameter(torch.full((heads,), -4.0))
        self.norm, self.out = nn.RMSNorm(width), nn.Linear(width, width)

    def forward(self, x):
        b, t, width = x.shape
        z, v, key, query, step = self.inner(x).split([width, width, self.state, self.state, self.heads], -1)
        step = F.softplus(step.float() + self.step)
        v = v.view(b, t // self.chunk, self.chunk, self.heads, -1) * step.view(b, -1, self.chunk, self.heads, 1)
        key, query = (y.view(b, -1, self.chunk, self.state) for y in (key, query))
        a = (-self.log_a.exp() * step).view(b, -1, self.chunk, self.heads).permute(0, 3, 1, 2)
        within = torch.exp(segments(a))
        y = torch.einsum("bcin,bcjn,bhcij,bcjhp->bcihp", query, key, within, v)
        ends = torch.exp(a.cumsum(-1)[..., -1:] - a.cumsum(-1))
        states = torch.einsum("bcjn,bhcj,bcjhp->bchpn", key, ends, v)
        carry = torch.exp(segments(F.pad(a.sum(-1), (1, 0))))[..., :-1, :]
        states = torch.einsum("bhzc,bchpn->bzhpn", carry, F.pad(states, (0, 0, 0, 0, 0, 0, 1, 0)))
        y = y + torch.einsum("bcin,bchpn,bhci->bcihp", query, states, torch.exp(a.cumsum(-1)))
        return self.out(self.norm(y.reshape(b, t, width) * F.silu(z)))


class StateSpace(nn.Module):
    def __init__(self, vocabulary=4096, width=256, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))
        self.mixers = nn.ModuleList(Mixer(width) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.embed(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x)


def make_model():
    return StateSpace()


def make_batch():
    ids = torch.randint(0, 4096, (4, 257))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(logits, batch):
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
