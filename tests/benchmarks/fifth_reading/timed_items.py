"""Sequential recommender with relative position ids (TiSASRec in small). Planted: positions beyond 256 in BF16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class RelativeBias(nn.Module):
    def __init__(self, heads, max_len):
        super().__init__()
        self.slopes = nn.Parameter(torch.linspace(0.5, 0.01, heads))
        self.max_len = max_len

    def forward(self, n, like):
        pos = torch.arange(n, device=like.device).to(torch.bfloat16)
        rel = (pos[None, :] - pos[:, None]).abs()  # planted: G211
        return -self.slopes[:, None, None] * rel


class Layer(nn.Module):
    def __init__(self, dim, heads, max_len):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = RelativeBias(heads, max_len)
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias(n, x).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, d))
        return x + self.ff(self.ln2(x))


class SASRec(nn.Module):
    def __init__(self, items=5000, dim=128, heads=4, depth=2, max_len=512):
        super().__init__()
        self.item = nn.Embedding(items, dim)
        self.layers = nn.ModuleList([Layer(dim, heads, max_len) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids):
        h = self.item(ids)
        for layer in self.layers:
            h = layer(h)
        return self.norm(h) @ self.item.weight.t()


def make_model():
    return SASRec()


def make_batch():
    ids = torch.randint(0, 5000, (4, 512))
    return ids, ids.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
