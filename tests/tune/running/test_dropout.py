"""Every way in which torch drops elements is switched off, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from amptune.tune.running.dropout import DropoutOff

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def of_attention(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x, None, 0.5)


def of_attention_by_keyword(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, cls: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = cls(8, 8, num_layers=2, dropout=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


DROPPING = {
    "module": nn.Dropout(0.5),
    "in place": nn.Dropout(0.5, inplace=True),
    "channels": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.5),
    "function": lambda x: F.dropout(x, 0.5, True),
    "torch": lambda x: torch.dropout(x, 0.5, True),
    "attention": of_attention,
    "attention by keyword": of_attention_by_keyword,
    "multi-head": Attended(),
    "lstm": Recurrent(nn.LSTM),
    "gru": Recurrent(nn.GRU),
    "rnn": Recurrent(nn.RNN),
    "encoder": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
}


@pytest.mark.parametrize("name", DROPPING)
def test_nothing_is_dropped(name: str) -> None:
    drop = DROPPING[name]
    assert not torch.equal(drop(X.clone()), drop(X.clone())), "it drops by itself"
    off = DropoutOff()
    with off:
        first, second = drop(X.clone()), drop(X.clone())
    assert torch.equal(first, second)
    assert off.used


def test_a_network_without_dropout_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LSTM(8, 8))
    off = DropoutOff()
    with off:
        switched = model(X)[0]
        F.scaled_dot_product_attention(X, X, X)
    assert torch.equal(switched, model(X)[0])
    assert not off.used


def test_nothing_is_dropped_where_a_backward_runs_a_layer_once_more() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    gradients = []
    for run in (lambda x: checkpoint(layer, x, use_reentrant=False), lambda x: layer[2](layer[0](x))):
        layer.zero_grad()
        mode = DropoutOff()
        with mode:
            loss = run(X).square().sum()
        mode.backward(loss)
        gradients.append([parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
