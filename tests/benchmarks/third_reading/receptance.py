"""A recurrent language model with receptance and decay (RWKV, fourth version), without the maximum that its kernel
keeps. Planted: exponentials of the keys, which nothing bounds."""

import torch
import torch.nn.functional as F
from torch import nn


class TimeMix(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.decay, self.first = nn.Parameter(torch.linspace(-3, 1, d)), nn.Parameter(torch.zeros(d))
        self.mix = nn.Parameter(torch.full((3, 1, 1, d), 0.5))
        self.key, self.value, self.receptance, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x):
        before = F.pad(x, (0, 0, 1, -1))
        xk, xv, xr = (x * m + before * (1 - m) for m in self.mix)
        k, v, r = self.key(xk), self.value(xv), torch.sigmoid(self.receptance(xr))
        keys = torch.exp(k)  # planted: G203
        w = torch.exp(-torch.exp(self.decay))
        top = bottom = torch.zeros_like(v[:, 0])
        found = []
        for t in range(x.shape[1]):
            now = torch.exp(self.first) * keys[:, t]
            found.append((top + now * v[:, t]) / (bottom + now + 1e-4))
            top, bottom = w * top + keys[:, t] * v[:, t], w * bottom + keys[:, t]
        return self.out(r * torch.stack(found, 1))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.one, self.two, self.time = nn.LayerNorm(d), nn.LayerNorm(d), TimeMix(d)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        x = x + self.time(self.one(x))
        return x + self.down(torch.relu(self.up(self.two(x))) ** 2)


class Model(nn.Module):
    def __init__(self, v=16384, d=256, n=2):
        super().__init__()
        self.emb, self.blocks, self.ln = (
            nn.Embedding(v, d),
            nn.Sequential(*[Block(d) for _ in range(n)]),
            nn.LayerNorm(d),
        )
        self.head = nn.Linear(d, v, bias=False)

    def forward(self, ids):
        return self.head(self.ln(self.blocks(self.emb(ids))))


def make_model():
    return Model()


def make_batch():
    ids = torch.randint(0, 16384, (8, 32))
    return ids, ids.roll(-1, 1)


def loss_fn(out, batch):
    return F.cross_entropy(out.flatten(0, 1), batch[1].flatten())
