"""A BF16 transformer whose author casts up for every activation. Planted: ping-pong: up to FP32 for a GELU and down
again."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class FF(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        h = self.up(x)
        h = F.gelu(h.float()).to(h.dtype)  # planted: G302
        return self.down(h)


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ff = FF(dim)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, d))
        return x + self.ff(self.n2(x))


class LM(nn.Module):
    def __init__(self, vocab=8192, dim=512, depth=4):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, 8) for _ in range(depth))
        self.head = nn.Linear(dim, vocab)

    def forward(self, ids):
        x = self.emb(ids)
        for b in self.blocks:
            x = b(x)
        return self.head(x)


def make_model():
    return LM().bfloat16()


def make_batch():
    ids = torch.randint(0, 8192, (8, 512))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.float().flatten(0, 1), batch[1].flatten())
