"""Group-relative policy optimisation of a small decoder. Planted: the advantages are divided by the deviation of
their group's rewards without an eps, and rewards of 0 or 1 are often the same for the whole group."""

import torch
import torch.nn.functional as F
from torch import nn

GROUPS, EACH, TOKENS, VOCABULARY = 4, 4, 256, 8192


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.gate, self.down = (
            nn.Linear(*s, bias=False) for s in [(width, 1536), (width, 1536), (1536, width)]
        )

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Policy(nn.Module):
    def __init__(self, width=512, heads=8, depth=4):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(TOKENS, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids):
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x[:, :-1]))
        return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def make_model():
    return Policy()


def make_batch():
    ids = torch.randint(0, VOCABULARY, (GROUPS * EACH, TOKENS))
    old = -9.0 - torch.rand(GROUPS * EACH, TOKENS - 1)
    keep = (torch.arange(TOKENS - 1) >= 64).expand(GROUPS * EACH, -1).float()
    rewards = (torch.rand(GROUPS, EACH) > 0.7).float()
    return ids, (old, old + 0.1, keep, rewards)


def loss_fn(logp, batch):
    old, reference, keep, rewards = batch[1]
    advantages = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)  # planted: G205
    advantages = advantages.view(-1, 1)
    ratio = torch.exp((logp - old).clamp(-10, 10))
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    gap = (reference - logp).clamp(-10, 10)
    penalty = gap.exp() - gap - 1
    return -((gain - 0.04 * penalty) * keep).sum() / keep.sum().clamp(min=1)
