"""Captions of pictures by an LSTM with additive attention, a step at a time. Planted: word vectors have 300 columns, as
GloVe gives them, and join the picture's 512 in every step's product."""

import torch
import torch.nn.functional as F
from torch import nn

WORDS = 10000


class Attention(nn.Module):
    def __init__(self, seen, width):
        super().__init__()
        self.picture, self.state, self.score = nn.Linear(seen, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, places, keys, h):
        shares = F.softmax(self.score(torch.tanh(keys + self.state(h)[:, None])).squeeze(-1), -1)
        return (places * shares[..., None]).sum(1)


class Captioner(nn.Module):
    def __init__(self, seen=512, words=300, width=512):
        super().__init__()
        self.embed = nn.Embedding(WORDS, words)
        self.attend = Attention(seen, width)
        self.cell = nn.LSTMCell(words + seen, width)
        self.start = nn.Linear(seen, 2 * width)
        self.head = nn.Linear(width, WORDS)

    def forward(self, places, ids):
        keys = self.attend.picture(places)
        h, c = torch.tanh(self.start(places.mean(1))).chunk(2, -1)
        words, out = self.embed(ids), []
        for t in range(ids.shape[1]):
            seen = self.attend(places, keys, h)
            h, c = self.cell(torch.cat([words[:, t], seen], -1), (h, c))  # planted: G101
            out.append(h)
        return self.head(torch.stack(out, 1))


def make_model():
    return Captioner()


def make_batch():
    return {"places": torch.randn(128, 49, 512), "ids": torch.randint(0, WORDS, (128, 12))}


def loss_fn(logits, batch):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["ids"][:, 1:].flatten())
