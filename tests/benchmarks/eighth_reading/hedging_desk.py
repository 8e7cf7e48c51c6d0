"""Deep hedging of a short call: positions by a recurrent network, the exponential utility of the result as loss.
Planted: the exponential of a loss in full currency units overflows."""

import math

import torch
import torch.nn as nn


class Hedger(nn.Module):
    def __init__(self, hidden=48, strike=100.0, contracts=200, cost=0.0005):
        super().__init__()
        self.cell = nn.GRUCell(3, hidden)
        self.out = nn.Linear(hidden, 1)
        self.premium = nn.Parameter(torch.tensor(2.5))
        self.hidden, self.strike, self.contracts, self.cost = hidden, strike, contracts, cost

    def forward(self, prices):
        paths, times = prices.shape
        h = prices.new_zeros(paths, self.hidden)
        held = prices.new_zeros(paths)
        gains = prices.new_zeros(paths)
        for t in range(times - 1):
            left = torch.full_like(held, (times - 1 - t) / (times - 1))
            h = self.cell(torch.stack([torch.log(prices[:, t] / self.strike), left, held], dim=1), h)
            wanted = torch.sigmoid(self.out(h)).squeeze(1)
            gains = gains - self.cost * prices[:, t] * (wanted - held).abs()
            gains = gains + wanted * (prices[:, t + 1] - prices[:, t])
            held = wanted
        owed = (prices[:, -1] - self.strike).clamp(min=0.0)
        return self.contracts * (self.premium + gains - owed)


def entropic_risk(wealth, aversion=0.5):
    return torch.log(torch.exp(-aversion * wealth).mean()) / aversion  # planted: G203


def expected_shortfall(wealth, level=0.95):
    worst = max(1, math.ceil((1 - level) * wealth.shape[0]))
    return -wealth.topk(worst, largest=False).values.mean()


def make_model():
    return Hedger()


def make_batch():
    steps, year, sigma = 20, 20 / 250, 0.25
    shocks = torch.randn(512, steps) * sigma * math.sqrt(year / steps)
    log_price = (shocks - 0.5 * sigma**2 * year / steps).cumsum(1)
    prices = 100.0 * torch.cat([torch.zeros(512, 1), log_price], dim=1).exp()
    return prices, None


def loss_fn(output, batch):
    return entropic_risk(output) + 0.1 * expected_shortfall(output)
