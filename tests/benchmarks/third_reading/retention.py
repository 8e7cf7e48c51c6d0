"""A retentive network in its parallel form: decays by distance in the place of a softmax. Careful: decays are below
one, scores are scaled before the product and their sum is held at one."""

import torch
import torch.nn.functional as F
from torch import nn


class Retention(nn.Module):
    def __init__(self, d=256, heads=4):
        super().__init__()
        self.heads, self.scale = heads, (d // heads) ** -0.5
        self.qkvg = nn.Linear(d, 4 * d, bias=False)
        self.norm, self.out = nn.GroupNorm(heads, d), nn.Linear(d, d, bias=False)
        self.register_buffer("gamma", 1 - 2.0 ** (-5 - torch.arange(heads)))

    def decays(self, t):
        at = torch.arange(t, device=self.gamma.device)
        apart = at[:, None] - at[None]
        return torch.where(apart >= 0, self.gamma[:, None, None] ** apart.clamp(min=0), 0.0)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v, g = self.qkvg(x).chunk(4, -1)
        q, k, v = (each.view(b, t, self.heads, -1).transpose(1, 2) for each in (q, k, v))
        scores = (q * self.scale) @ k.transpose(2, 3) * self.decays(t)
        scores = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)
        h = (scores @ v).transpose(1, 2).reshape(b * t, d)
        return self.out(F.silu(g) * self.norm(h).view(b, t, d))


class Net(nn.Module):
    def __init__(self, words=8192, d=256, depth=3):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, d), nn.Linear(d, words)
        self.mix = nn.ModuleList(Retention(d) for _ in range(depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * depth))

    def forward(self, ids):
        x = self.embed(ids)
        for i, (mix, feed) in enumerate(zip(self.mix, self.feed, strict=True)):
            x = x + mix(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return self.head(x)


def make_model():
    return Net()


def make_batch():
    ids = torch.randint(0, 8192, (8, 256))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.transpose(1, 2), batch[1])
