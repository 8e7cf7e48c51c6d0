"""Tours of a delivery van by reinforcement: a decoder picks the next stop among those not seen yet, with scores between
-10 and 10, and a greedy tour is the baseline."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Encoder(nn.Module):
    def __init__(self, dim=128, heads=8, layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.embed = nn.Linear(2, dim)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, stops):
        return self.layers(self.embed(stops))


class Tours(nn.Module):
    def __init__(self, dim=128):
        super().__init__()
        self.encode = Encoder(dim)
        self.query, self.key = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.scale = dim**-0.5

    def forward(self, stops, tour):
        h = self.encode(stops)
        n, d = h.shape[1:]
        in_order = h.gather(1, tour[..., None].expand(-1, -1, d))
        query = self.query(torch.cat((in_order[:, :-1], h.mean(1, keepdim=True).expand(-1, n - 1, -1)), -1))
        scores = 10.0 * torch.tanh((query @ self.key(h).transpose(1, 2)).float() * self.scale)
        seen = F.one_hot(tour, n).cumsum(1)[:, :-1].bool()
        log_chance = F.log_softmax(scores.masked_fill(seen, -1e9), -1)
        return log_chance.gather(-1, tour[:, 1:, None]).squeeze(-1).sum(-1)


def length(stops, tour):
    way = stops.gather(1, tour[..., None].expand(-1, -1, 2))
    return ((way - way.roll(1, 1)).square().sum(-1) + 1e-9).sqrt().sum(-1)


def make_model():
    return Tours()


def make_batch():
    stops = torch.rand(64, 20, 2)
    tour, greedy = (torch.rand(64, 20).argsort(1) for _ in range(2))
    return {"stops": stops, "tour": tour, "greedy": greedy}


def loss_fn(output, batch):
    gain = length(batch["stops"], batch["tour"]) - length(batch["stops"], batch["greedy"])
    gain = (gain - gain.mean()) / (gain.std() + 1e-6)
    return (gain * output).mean()
