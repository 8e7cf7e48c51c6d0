"""FT-Transformer: a token for each of 40 numbers and 24 categories of a row, three layers of attention between them;
4096 rows."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, NUMBERS, CATEGORIES, VALUES, WIDTH, HIDDEN, HEADS, LAYERS = 4096, 40, 24, 1000, 192, 256, 8, 3


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(0.1 * torch.randn(NUMBERS, WIDTH)) for _ in range(2))
        self.values = nn.Embedding(CATEGORIES * VALUES, WIDTH)
        self.summary = nn.Parameter(0.1 * torch.randn(1, 1, WIDTH))
        self.register_buffer("offsets", VALUES * torch.arange(CATEGORIES))

    def forward(self, numbers, categories):
        summary = self.summary.expand(len(numbers), -1, -1)
        return torch.cat(
            [summary, numbers[..., None] * self.weight + self.bias, self.values(categories + self.offsets)], dim=1
        )


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.2, batch_first=True)
        self.up, self.down, self.drop = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Dropout(0.1)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        value, gate = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(self.drop(value * F.relu(gate)))


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = Tokens()
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, numbers, categories):
        return self.head(self.layers(self.tokens(numbers, categories))[:, 0]).squeeze(1)


def make_model():
    return Tabular()


def make_batch():
    return (torch.randn(BATCH, NUMBERS), torch.randint(0, VALUES, (BATCH, CATEGORIES))), torch.randn(BATCH)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])
