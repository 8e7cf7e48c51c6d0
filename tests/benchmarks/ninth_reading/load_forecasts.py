"""Day-ahead electricity load of 24 zones in MW (0 to 9,000) by a GRU over a week of hours. The loss is log cosh."""

import torch
import torch.nn as nn


class LoadForecaster(nn.Module):
    def __init__(self, zones=24, hidden=128, ahead=24, level=4000.0, spread=2000.0):
        super().__init__()
        self.level, self.spread, self.ahead, self.zones = level, spread, ahead, zones
        self.calendar = nn.Embedding(168, 16)
        self.gru = nn.GRU(zones + 16, hidden, batch_first=True)
        self.head = nn.Linear(hidden, zones * ahead)

    def forward(self, load, hour):
        x = torch.cat(((load - self.level) / self.spread, self.calendar(hour)), -1)
        _, last = self.gru(x)
        scaled = self.head(last[-1]).view(-1, self.ahead, self.zones)
        return self.level + self.spread * scaled.float()


class LogCosh(nn.Module):
    def forward(self, forecast, truth):
        return torch.log(torch.cosh(forecast - truth)).mean()  # planted: G203


def make_model():
    return LoadForecaster()


def make_batch():
    load = 4000 + 1500 * torch.rand(16, 168, 24)
    hour = torch.arange(168).expand(16, -1)
    return {"load": load, "hour": hour, "truth": 4000 + 1500 * torch.rand(16, 24, 24)}


def loss_fn(output, batch):
    return LogCosh()(output, batch["truth"])
