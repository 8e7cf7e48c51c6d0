"""A decoder of today: root mean square norms by hand in FP32, norms on queries and keys, soft caps, a gated feed
forward, and a penalty on the log-normaliser."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Rms(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * self.gain.float()).to(x.dtype)


class Block(nn.Module):
    def __init__(self, dim, heads, cap=50.0):
        super().__init__()
        self.heads, self.size, self.cap = heads, dim // heads, cap
        self.before, self.middle = Rms(dim), Rms(dim)
        self.of_query, self.of_key = Rms(self.size), Rms(self.size)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x, blocked):
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        scores = self.of_query(q) @ self.of_key(k).transpose(-1, -2) * self.size**-0.5
        scores = self.cap * torch.tanh(scores / self.cap)
        scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
        h = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
        x = x + self.out(h.transpose(1, 2).reshape(b, t, d))
        a, gate = self.up(self.middle(x)).chunk(2, -1)
        return x + self.down(a * F.silu(gate))


class Decoder(nn.Module):
    def __init__(self, words=4096, dim=256, heads=4, layers=2):
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = Rms(dim)
        self.head = nn.Linear(dim, words, bias=False)

    def forward(self, words):
        x = self.embed(words)
        t = words.shape[1]
        blocked = torch.ones(t, t, dtype=torch.bool, device=words.device).triu(1)
        for layer in self.layers:
            x = layer(x, blocked)
        logits = self.head(self.norm(x)).float()
        return 30.0 * torch.tanh(logits / 30.0)


def make_model():
    return Decoder()


def make_batch():
    words = torch.randint(0, 4096, (4, 257))
    return words[:, :-1], words[:, 1:]


def loss_fn(output, batch):
    log_z = torch.logsumexp(output, -1)
    chosen = output.gather(-1, batch[1][..., None]).squeeze(-1)
    smooth = 0.9 * chosen + 0.1 * output.mean(-1)
    return (log_z - smooth).mean() + 1e-4 * log_z.square().mean()
