"""Direct preference optimisation: a policy and a frozen reference, log probabilities summed over answers, logsigmoid of
the margin. Careful."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((width, 704), (width, 704), (704, width)))

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, width))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Policy(nn.Module):
    def __init__(self, vocabulary=8192, width=256, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks, self.norm = nn.ModuleList(Block(width, 4) for _ in range(depth)), nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Preference(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy = Policy()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def score(self, model, ids, answer):
        logits = model(ids[:, :-1]).float()
        each = F.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2)
        return (each * answer[:, 1:]).sum(1)

    def forward(self, ids, answer):
        new = self.score(self.policy, ids, answer)
        with torch.no_grad():
            old = self.score(self.reference, ids, answer)
        return (new - old).chunk(2)


def make_model():
    return Preference()


def make_batch():
    answer = torch.zeros(16, 129)
    answer[:, 64:] = 1
    return {"ids": torch.randint(0, 8192, (16, 129)), "answer": answer}


def loss_fn(output, batch):
    chosen, rejected = output
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()
