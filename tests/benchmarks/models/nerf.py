"""A neural radiance field: sines of places, MLPs of width 256, volume rendering with coarse and fine samples; 4096
rays."""

import torch
import torch.nn.functional as F
from torch import nn

RAYS, COARSE, FINE, WIDTH, DEPTH, SKIP, PLACE_SINES, VIEW_SINES, NEAR, FAR = 4096, 64, 128, 256, 8, 4, 10, 4, 2.0, 6.0


def sines(x, count):
    scales = 2.0 ** torch.arange(count, device=x.device)
    angles = (x[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        place, view = 3 + 6 * PLACE_SINES, 3 + 6 * VIEW_SINES
        widths = [place] + [WIDTH] * (DEPTH - 1)
        widths[SKIP + 1] += place
        self.layers = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.density, self.feature = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.density.bias, 0.1)
        self.colour = nn.Sequential(nn.Linear(WIDTH + view, WIDTH // 2), nn.ReLU(), nn.Linear(WIDTH // 2, 3))

    def forward(self, places, views):
        places = sines(places, PLACE_SINES)
        x = places
        for number, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            if number == SKIP:
                x = torch.cat([places, x], dim=-1)
        colour = self.colour(torch.cat([self.feature(x), views], dim=-1))
        return torch.sigmoid(colour), F.relu(self.density(x)).squeeze(-1)


def rendered(colour, density, depths):
    gaps = F.pad(depths[:, 1:] - depths[:, :-1], (0, 1), value=1e10)
    opacity = 1 - torch.exp(-density * gaps)
    clear = torch.cumprod(F.pad(1 - opacity[:, :-1] + 1e-10, (1, 0), value=1.0), dim=1)
    weights = opacity * clear
    return (weights[..., None] * colour).sum(1), weights


def finer(depths, weights):
    """More depths where the weights are large, by the inverse of their distribution."""
    middles = (depths[:, 1:] + depths[:, :-1]) / 2
    shares = weights[:, 1:-1] + 1e-5
    sums = F.pad((shares / shares.sum(1, keepdim=True)).cumsum(1), (1, 0))
    drawn = torch.rand(len(depths), FINE, device=depths.device)
    above = torch.searchsorted(sums, drawn, right=True).clamp(1, sums.shape[1] - 1)
    low, high = sums.gather(1, above - 1), sums.gather(1, above)
    start, stop = middles.gather(1, above - 1), middles.gather(1, above)
    found = start + (drawn - low) / (high - low).clamp_min(1e-5) * (stop - start)
    return torch.cat([depths, found], dim=1).sort(dim=1).values


class Radiance(nn.Module):
    def __init__(self):
        super().__init__()
        self.coarse, self.fine = Field(), Field()

    def see(self, field, origins, ways, depths):
        places = origins[:, None] + ways[:, None] * depths[..., None]
        views = sines(F.normalize(ways, dim=-1), VIEW_SINES)[:, None].expand(-1, depths.shape[1], -1)
        return rendered(*field(places, views), depths)

    def forward(self, origins, ways):
        bins = torch.linspace(NEAR, FAR, COARSE + 1, device=origins.device)
        jitter = torch.rand(len(origins), COARSE, device=origins.device)
        depths = bins[:-1] + jitter * (bins[1:] - bins[:-1])
        first, weights = self.see(self.coarse, origins, ways, depths)
        second, _ = self.see(self.fine, origins, ways, finer(depths, weights.detach()))
        return first, second


def make_model():
    return Radiance()


def make_batch():
    return (4 * F.normalize(torch.randn(RAYS, 3), dim=1), torch.randn(RAYS, 3)), torch.rand(RAYS, 3)


def loss_fn(output, batch):
    return F.mse_loss(output[0], batch[1]) + F.mse_loss(output[1], batch[1])
