"""Where does a taxi ride end? A net over the first and last points of a trip weighs learnt places, and the answer
is the mean of those places. The places start at destinations of the training set; the loss is the way in km,
and a spread term keeps places that serve the same riders close to real destinations."""

import torch
import torch.nn as nn

EARTH_KM = 6371.0


def haversine(a, b):
    """Great-circle distance in km of points in radians (latitude, longitude)."""
    lat1, lon1 = a.unbind(-1)
    lat2, lon2 = b.unbind(-1)
    u = torch.sin(0.5 * (lat2 - lat1)).square()
    v = torch.cos(lat1) * torch.cos(lat2) * torch.sin(0.5 * (lon2 - lon1)).square()
    return 2.0 * EARTH_KM * torch.asin((u + v).clamp(max=0.999).sqrt())  # planted: G206


def destinations(n, seed):
    g = torch.Generator().manual_seed(seed)
    lat = 41.15 + 0.05 * torch.randn(n, generator=g)
    lon = -8.61 + 0.05 * torch.randn(n, generator=g)
    return torch.deg2rad(torch.stack((lat, lon), -1))


class Rides(nn.Module):
    def __init__(self, points=10, places=128, hidden=256):
        super().__init__()
        self.taxi = nn.Embedding(448, 16)
        self.hour = nn.Embedding(24, 16)
        self.body = nn.Sequential(nn.Linear(2 * points + 32, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.weigh = nn.Linear(hidden, places)
        self.places = nn.Parameter(destinations(places, seed=1))

    def forward(self, path, taxi, hour):
        h = torch.cat((path.flatten(1), self.taxi(taxi), self.hour(hour)), -1)
        share = self.weigh(self.body(h)).float().softmax(-1)
        return share @ self.places, self.places


def make_model():
    return Rides()


def make_batch():
    g = torch.Generator().manual_seed(2)
    path = torch.randn(128, 10, 2, generator=g)
    taxi = torch.randint(0, 448, (128,), generator=g)
    hour = torch.randint(0, 24, (128,), generator=g)
    return {"path": path, "taxi": taxi, "hour": hour, "ends": destinations(128, seed=1)}


def loss_fn(output, batch):
    answer, places = output
    ends = batch["ends"]
    way = haversine(answer, ends).mean()
    near = haversine(ends[:, None], places[None]).min(0).values.mean()
    return way + 0.01 * near
