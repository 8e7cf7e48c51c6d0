"""A matrix-memory LSTM in its parallel form (xLSTM), by hand. Planted: input gates are exponentiated without taking
the largest exponent off, which is what the stabiliser of the paper is for."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MatrixMemory(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 2 * heads)
        self.norm = nn.GroupNorm(heads, width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.constant_(self.gates.bias[heads:], 4.0)

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        igate, fgate = self.gates(x).view(b, t, 2, self.heads).permute(2, 0, 3, 1)
        decay = F.logsigmoid(fgate.float()).cumsum(-1)
        exponents = decay[..., :, None] - decay[..., None, :] + igate.float()[..., None, :]
        keep = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        gates = torch.exp(exponents).masked_fill(~keep, 0.0)  # planted: G203
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head) * gates
        norm = scores.sum(-1, keepdim=True).abs().clamp(min=1.0)
        h = (scores / norm) @ v
        h = h.transpose(1, 2).reshape(b * t, width)
        return self.out(self.norm(h).view(b, t, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.memory = MatrixMemory(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.memory(self.norms[0](x))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class LanguageModel(nn.Module):
    def __init__(self, vocabulary=32000, width=512, depth=4, heads=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids))))


def make_model():
    return LanguageModel()


def make_batch():
    ids = torch.randint(0, 32000, (8, 513))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
