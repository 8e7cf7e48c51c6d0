"""A decoder in BF16 whose rotary tables were left in FP32. Planted: a product in FP32: rotary tables in FP32 raise q
and k."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def rotate(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Attention(nn.Module):
    def __init__(self, dim, heads, length):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False, dtype=torch.bfloat16) for _ in range(4))
        hd = dim // heads
        inv = 1.0 / (10000 ** (torch.arange(0, hd, 2).float() / hd))
        ang = torch.outer(torch.arange(length).float(), inv)
        self.register_buffer("cos", torch.cat((ang, ang), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((ang, ang), -1).sin(), persistent=False)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = q * self.cos[:n] + rotate(q) * self.sin[:n]  # planted: G306
        k = k * self.cos[:n] + rotate(k) * self.sin[:n]
        att = torch.matmul(q, k.transpose(-1, -2)) / (d // self.heads) ** 0.5
        att = att.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), float("-inf"))
        y = torch.matmul(att.softmax(-1).to(v.dtype), v)
        return self.o(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, dim, heads, length):
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(dim, dtype=torch.bfloat16), nn.RMSNorm(dim, dtype=torch.bfloat16)
        self.attn = Attention(dim, heads, length)
        self.up = nn.Linear(dim, 4 * dim, dtype=torch.bfloat16)
        self.down = nn.Linear(4 * dim, dim, dtype=torch.bfloat16)

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.down(F.silu(self.up(self.n2(x))))


class LM(nn.Module):
    def __init__(self, vocab=4096, dim=256, heads=4, depth=4, length=256):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim, dtype=torch.bfloat16)
        self.blocks = nn.ModuleList(Block(dim, heads, length) for _ in range(depth))
        self.head = nn.Linear(dim, vocab, dtype=torch.bfloat16)

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = b(x)
        return self.head(x)


def make_model():
    return LM()


def make_batch():
    ids = torch.randint(0, 4096, (4, 256))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.float().flatten(0, 1), batch[1].flatten())
