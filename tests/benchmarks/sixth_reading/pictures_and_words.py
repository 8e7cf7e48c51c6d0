"""Pictures and captions in one space (as CLIP): a learnt temperature, clamped, symmetric cross entropy. Careful: unit
vectors from F.normalize, the logits in FP32 before the scale."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Pictures(nn.Module):
    def __init__(self, dim=256, width=192, heads=3, depth=3, patch=16, size=96):
        super().__init__()
        self.conv = nn.Conv2d(3, width, patch, patch, bias=False)
        self.cls = nn.Parameter(torch.randn(width) * width**-0.5)
        self.pos = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) * width**-0.5)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, dim, bias=False)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1) + self.pos
        return self.proj(self.norm(self.body(x)[:, 0]))


class Words(nn.Module):
    def __init__(self, vocab=4096, dim=256, width=192, length=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, width), nn.Parameter(torch.randn(length, width) * 0.01)
        layer = nn.TransformerEncoderLayer(width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, dim, bias=False)

    def forward(self, ids):
        n = ids.shape[1]
        mask = torch.full((n, n), float("-inf"), device=ids.device).triu(1)
        x = self.norm(self.body(self.emb(ids) + self.pos[:n], mask=mask))
        return self.proj(x[torch.arange(ids.shape[0], device=ids.device), ids.argmax(-1)])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.pictures, self.words = Pictures(), Words()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image, ids):
        a = F.normalize(self.pictures(image).float(), dim=-1)
        b = F.normalize(self.words(ids).float(), dim=-1)
        return self.log_scale.clamp(max=math.log(100)).exp() * (a @ b.t()).float()


def make_model():
    return Pair()


def make_batch():
    return (torch.randn(64, 3, 96, 96), torch.randint(0, 4096, (64, 32))), None


def loss_fn(output, batch):
    own = torch.arange(output.shape[0], device=output.device)
    return (F.cross_entropy(output, own) + F.cross_entropy(output.t(), own)) / 2
