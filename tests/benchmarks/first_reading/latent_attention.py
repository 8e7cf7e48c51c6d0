"""Multi-head latent attention with decoupled rotary keys (DeepSeek-V2), by hand. Planted: positions take the format
of the queries before they are multiplied by the rotary frequencies; 1024 of them are more than BF16 can count."""

import torch
import torch.nn.functional as F
from torch import nn


def rotate(x, angles):
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class LatentAttention(nn.Module):
    def __init__(self, width=768, heads=12, latent=256, query_latent=384, plain=64, rotary=32):
        super().__init__()
        self.heads, self.plain, self.rotary = heads, plain, rotary
        self.q_down, self.q_norm = nn.Linear(width, query_latent, bias=False), nn.RMSNorm(query_latent)
        self.q_up = nn.Linear(query_latent, heads * (plain + rotary), bias=False)
        self.kv_down, self.kv_norm = nn.Linear(width, latent + rotary, bias=False), nn.RMSNorm(latent)
        self.kv_up = nn.Linear(latent, heads * 2 * plain, bias=False)
        self.out = nn.Linear(heads * plain, width, bias=False)
        self.register_buffer("rates", 10000.0 ** (-torch.arange(0, rotary, 2) / rotary))

    def forward(self, x):
        b, t, _ = x.shape
        q = self.q_up(self.q_norm(self.q_down(x))).view(b, t, self.heads, -1).transpose(1, 2)
        q, q_rotary = q.split([self.plain, self.rotary], -1)
        latent, k_rotary = self.kv_down(x).split([self.kv_norm.weight.shape[0], self.rotary], -1)
        k, v = self.kv_up(self.kv_norm(latent)).view(b, t, self.heads, -1).transpose(1, 2).chunk(2, -1)
        positions = torch.arange(t, device=x.device, dtype=q.dtype)
        angles = positions[:, None] * self.rates.to(q.dtype)  # planted: G211
        q_rotary = rotate(q_rotary, angles)
        k_rotary = rotate(k_rotary[:, None], angles).expand(-1, self.heads, -1, -1)
        q, k = torch.cat([q, q_rotary], -1), torch.cat([k, k_rotary], -1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = LatentAttention(width)
        self.up, self.down = nn.Linear(width, 2 * 2048, bias=False), nn.Linear(2048, width, bias=False)

    def forward(self, x):
        x = x + self.attention(self.first(x))
        gate, up = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, vocabulary=32000, width=768, depth=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()) if labels is not None else None
        return {"logits": logits, "loss": loss}


def make_model():
    return Decoder()


def make_batch():
    ids = torch.randint(0, 32000, (4, 1025))
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def loss_fn(output, batch):
    return output["loss"]
