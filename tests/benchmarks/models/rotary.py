"""A decoder as people write it after reading the papers."""

import math

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, DIM, HEADS, LAYERS = 32000, 768, 12, 12


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.out = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + mask
        y = torch.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, DIM))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(DIM, 2048, bias=False)
        self.up = nn.Linear(DIM, 2048, bias=False)
        self.down = nn.Linear(2048, DIM, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(DIM), RMSNorm(DIM)
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, x, cos, sin, mask):
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(VOCAB, DIM)
        nn.init.normal_(self.tok.weight, std=0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = RMSNorm(DIM)

    def forward(self, ids, targets=None):
        t = ids.shape[1]
        freq = 1.0 / (10000 ** (torch.arange(0, 32, device=ids.device).float() / 32))
        angle = torch.arange(t, device=ids.device).float()[:, None] * freq[None]
        mask = torch.full((t, t), float("-inf"), device=ids.device).triu(1)
        x = self.tok(ids)
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin(), mask)
        logits = self.norm(x) @ self.tok.weight.T
        loss = F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1)) if targets is not None else None
        return logits, loss


def make_model():
    return Decoder()


def make_batch():
    ids = torch.randint(0, VOCAB, (8, 513))
    return {"ids": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}


def loss_fn(output, batch):
    return output[1]
