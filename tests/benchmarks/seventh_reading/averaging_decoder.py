"""A translator's decoder by averages over the past (AAN), the whole model in BF16. Planted: the running sum over 1024
places is in BF16, and so are the counts that it is divided by."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class AverageAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.gate = nn.Linear(2 * dim, 2 * dim)

    def forward(self, x):
        seen = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)  # planted: G211
        average = torch.cumsum(x, dim=1) / seen[:, None]  # planted: G217
        average = self.ffn(average)
        i, f = torch.sigmoid(self.gate(torch.cat([x, average], -1))).chunk(2, -1)
        return i * x + f * average


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.avg = AverageAttention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.avg(self.n1(x))
        return x + self.mlp(self.n2(x))


class Decoder(nn.Module):
    def __init__(self, vocab=8000, dim=256, depth=3):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make_model():
    return Decoder().to(torch.bfloat16)


def make_batch():
    ids = torch.randint(0, 8000, (4, 1025))
    return ids[:, :-1], ids[:, 1:]


def loss_fn(output, batch):
    return F.cross_entropy(output.float().flatten(0, 1), batch[1].flatten())
