"""A decoder trained in pure BF16, weights and all. Planted: the tokens that count are summed in the 16 bits of the
losses (BF16 counts to 256), and so is the total of the losses by which the mean is taken."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.first(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, width))
        return x + self.mlp(self.second(x))


class Decoder(nn.Module):
    def __init__(self, vocabulary=16384, width=512, heads=8, depth=4, length=512):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make_model():
    return Decoder().to(torch.bfloat16)


def make_batch():
    ids = torch.randint(1, 16384, (8, 513))
    ids[:, 400:] = 0
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(logits, batch):
    labels = batch[1].flatten()
    losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
    counts = (labels != 0).to(losses.dtype)
    return (losses * counts).sum() / counts.sum()  # planted: G211
