"""Translation while listening: monotonic attention whose expected alignments come from clamped products. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def exclusive_product(x):
    logs = torch.cumsum(torch.log(x.clamp(min=1e-6)), -1)
    return torch.exp(F.pad(logs[..., :-1], (1, 0)))


class MonotonicAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, state, memory, before, valid):
        energy = torch.einsum("bd,bnd->bn", self.query(state) * memory.shape[-1] ** -0.5, self.key(memory)).float()
        p = torch.sigmoid(energy + self.bias) * valid
        stay = exclusive_product(1 - p)
        share = p * stay * torch.cumsum(before / stay.clamp(1e-7, 1), -1)
        context = torch.einsum("bn,bnd->bd", share.to(memory.dtype), memory)
        return context, share


class Interpreter(nn.Module):
    def __init__(self, words=4000, dim=256):
        super().__init__()
        self.source, self.target = nn.Embedding(words, dim), nn.Embedding(words, dim)
        self.listen = nn.GRU(dim, dim, batch_first=True)
        self.cell = nn.GRUCell(2 * dim, dim)
        self.attend, self.head = MonotonicAttention(dim), nn.Linear(2 * dim, words)

    def forward(self, source, target):
        valid = (source > 0).float()
        memory, _ = self.listen(self.source(source))
        state = memory[:, -1]
        share = F.one_hot(torch.zeros_like(source[:, 0]), source.shape[1]).float()
        context = torch.zeros_like(state)
        logits = []
        for word in self.target(target).unbind(1):
            state = self.cell(torch.cat([word, context], 1), state)
            context, share = self.attend(state, memory, share, valid)
            logits.append(self.head(torch.cat([state, context], 1)))
        return torch.stack(logits, 1)


def make_model():
    return Interpreter()


def make_batch():
    source = torch.randint(1, 4000, (16, 40)) * (torch.arange(40) < torch.randint(12, 41, (16, 1)))
    target = torch.randint(1, 4000, (16, 13))
    return (source, target[:, :-1]), target[:, 1:]


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
