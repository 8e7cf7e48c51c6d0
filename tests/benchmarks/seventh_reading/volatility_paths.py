"""Option prices from simulated paths of a neural Heston model. Planted: an Euler step takes the variance below zero,
and the next one takes its root."""

import torch
import torch.nn as nn


class Coefficients(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.pull, self.level, self.spread = (nn.Linear(hidden, 1) for _ in range(3))

    def forward(self, state):
        h = self.net(state)
        return tuple(nn.functional.softplus(head(h).float()) for head in (self.pull, self.level, self.spread))


class NeuralHeston(nn.Module):
    def __init__(self, steps=32, maturity=1.0, correlation=-0.7):
        super().__init__()
        self.steps, self.dt = steps, maturity / steps
        self.rho = correlation
        self.start = nn.Parameter(torch.tensor(-3.0))
        self.coefficients = Coefficients()

    def forward(self, noise):
        paths = noise.shape[0]
        log_price = noise.new_zeros(paths, 1)
        v = self.start.exp().expand(paths, 1)
        for i in range(self.steps):
            time = torch.full_like(log_price, i * self.dt)
            pull, level, spread = self.coefficients(torch.cat([log_price, v, time], 1))
            dw = noise[:, i] * self.dt**0.5
            dz = self.rho * dw[:, :1] + (1 - self.rho**2) ** 0.5 * dw[:, 1:]
            root = torch.sqrt(v)  # planted: G206
            log_price = log_price - 0.5 * v * self.dt + root * dw[:, :1]
            v = v + pull * (level - v) * self.dt + spread * root * dz
        return log_price.exp().squeeze(1)


def make_model():
    return NeuralHeston()


def make_batch():
    strikes = torch.linspace(0.7, 1.3, 13)
    return torch.randn(2048, 32, 2), (strikes, (1.02 - strikes).clamp(min=0) + 0.05)


def loss_fn(output, batch):
    strikes, prices = batch[1]
    payoff = (output[:, None] - strikes).clamp(min=0).mean(0)
    return (payoff - prices).square().mean()
