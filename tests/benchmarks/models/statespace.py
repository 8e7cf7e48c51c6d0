"""A state space language model in plain PyTorch: decays that depend on the input, scanned in chunks by products, as in
Mamba-2; 6 layers of width 1024, batch 4 x 2048."""

import math

import torch
import torch.nn.functional as F
from torch import nn

VOCAB = 50277
BATCH, LENGTH, WIDTH, INNER, HEADS, STATE, CHUNK, KERNEL, LAYERS = 4, 2048, 1024, 2048, 32, 128, 64, 4, 6


def decay_between(rates):
    """exp of the sum of rates from each place to each later one, zero to earlier ones."""
    sums = rates.cumsum(-1)
    length = rates.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=rates.device).tril()
    return (sums[..., :, None] - sums[..., None, :]).masked_fill(~later, -torch.inf).exp()


def scan(x, rates, inward, outward):
    b, t, heads, size = x.shape
    x = x.view(b, t // CHUNK, CHUNK, heads, size)
    inward, outward = (each.view(b, t // CHUNK, CHUNK, STATE) for each in (inward, outward))
    rates = rates.view(b, t // CHUNK, CHUNK, heads).permute(0, 3, 1, 2)
    sums = rates.cumsum(-1)

    scores = torch.einsum("bnis,bnjs->bnij", outward, inward)
    within = torch.einsum("bhnij,bnjhp->bnihp", scores[:, None] * decay_between(rates), x)

    left = (sums[..., -1:] - sums).exp().permute(0, 2, 3, 1)
    states = torch.einsum("bnjs,bnjhp->bnhps", inward, x * left[..., None])
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    carried = decay_between(F.pad(sums[..., -1], (1, 0)))
    states = torch.einsum("bhmn,bnhps->bmhps", carried, states)[:, :-1]

    across = torch.einsum("bnis,bnhps->bnihp", outward, states)
    return (within + across * sums.exp().permute(0, 2, 3, 1)[..., None]).reshape(b, t, heads, size)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(WIDTH, 2 * INNER + 2 * STATE + HEADS, bias=False)
        channels = INNER + 2 * STATE
        self.conv = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL - 1, groups=channels)
        self.rate = nn.Parameter(torch.arange(1, HEADS + 1).float().log())
        steps = torch.linspace(math.log(1e-3), math.log(1e-1), HEADS).exp()
        self.step = nn.Parameter(steps.expm1().log())
        self.through = nn.Parameter(torch.ones(HEADS, 1))
        self.norm, self.out = nn.RMSNorm(INNER), nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, u):
        b, t, _ = u.shape
        gate, mixed, step = self.project(u).split([INNER, INNER + 2 * STATE, HEADS], dim=-1)
        mixed = F.silu(self.conv(mixed.transpose(1, 2))[..., :t].transpose(1, 2))
        x, inward, outward = mixed.split([INNER, STATE, STATE], dim=-1)
        x, step = x.reshape(b, t, HEADS, -1), F.softplus(step + self.step)
        y = scan(x * step[..., None], -self.rate.exp() * step, inward.contiguous(), outward.contiguous())
        y = (y + self.through * x).flatten(2)
        return self.out(self.norm(y * F.silu(gate)))


class StateSpace(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.words = nn.Embedding(vocab, WIDTH)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(LAYERS))
        self.mixers = nn.ModuleList(Mixer() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, vocab, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(self.norm(x))


def make_model(vocab=VOCAB):
    return StateSpace(vocab)


def make_batch():
    ids = torch.randint(0, 50000, (BATCH, LENGTH + 1))
    return ids[:, :-1], ids[:, 1:]


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
