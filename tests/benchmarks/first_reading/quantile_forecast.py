"""A forecaster with gated residual networks and quantile outputs, after the temporal fusion transformer. Careful."""

import torch
import torch.nn.functional as F
from torch import nn

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.02, 0.98, 0.99)


class GatedResidual(nn.Module):
    def __init__(self, inner, width, outer=None, context=None):
        super().__init__()
        outer = outer or width
        self.skip = nn.Linear(inner, outer) if inner != outer else nn.Identity()
        self.first, self.second = nn.Linear(inner, width), nn.Linear(width, outer)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.gate, self.norm = nn.Linear(outer, 2 * outer), nn.LayerNorm(outer)

    def forward(self, x, context=None):
        h = self.first(x)
        if self.context is not None and context is not None:
            h = h + self.context(context)
        h = self.second(F.elu(h))
        return self.norm(self.skip(x) + F.glu(self.gate(h), dim=-1))


class Selection(nn.Module):
    """Weighs the variables of each step."""

    def __init__(self, variables, width):
        super().__init__()
        self.each = nn.ModuleList(GatedResidual(width, width) for _ in range(variables))
        self.weigh = GatedResidual(variables * width, width, variables, width)

    def forward(self, xs, context):
        weights = self.weigh(torch.cat(xs, -1), context).softmax(-1)
        seen = torch.stack([net(x) for net, x in zip(self.each, xs, strict=True)], -1)
        return (seen * weights.unsqueeze(-2)).sum(-1)


class Fusion(nn.Module):
    def __init__(self, variables=8, width=128, horizon=24):
        super().__init__()
        self.horizon = horizon
        self.lift = nn.ModuleList(nn.Linear(1, width) for _ in range(variables))
        self.static = nn.Embedding(1000, width)
        self.select = Selection(variables, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.enrich = GatedResidual(width, width, context=width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.last = nn.LayerNorm(width), GatedResidual(width, width)
        self.out = nn.Linear(width, len(QUANTILES))

    def forward(self, series, who):
        context = self.static(who)[:, None].expand(-1, series.shape[1], -1)
        xs = [net(series[..., i : i + 1]) for i, net in enumerate(self.lift)]
        x, _ = self.lstm(self.select(xs, context))
        x = self.enrich(x, context)
        steps = series.shape[1]
        ahead = torch.ones(steps, steps, dtype=torch.bool, device=series.device).triu(1)
        seen, _ = self.attend(x, x, x, attn_mask=ahead, need_weights=False)
        return self.out(self.last(self.norm(x + seen))[:, -self.horizon :])


def make_model():
    return Fusion()


def make_batch():
    return (torch.randn(64, 192, 8), torch.randint(0, 1000, (64,))), torch.randn(64, 24)


def loss_fn(output, batch):
    error = batch[1][..., None] - output
    q = torch.tensor(QUANTILES, device=error.device)
    return torch.maximum(q * error, (q - 1) * error).mean()
