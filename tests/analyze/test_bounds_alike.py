"""Bounds hold where two sites look alike and are not, and where calls of one site read other things."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analyze.test_bounds_written import START, bounds_and_output

OTHERWISE = {
    "rounded otherwise": "torch.trunc(y) - torch.round(y)",
    "to some decimals": "torch.round(y, decimals=1) - torch.round(y)",
    "another quotient": "y.div(3, rounding_mode='trunc') - y.div(3, rounding_mode='floor')",
    "another form of gelu": "F.gelu(y, approximate='tanh') - F.gelu(y)",
    "another correction": "y.var(0, correction=0) - y.var(0)",
    "another beta": "F.softplus(y, beta=1) - F.softplus(y, beta=2)",
    "another diagonal": "torch.triu(y, diagonal=1) - torch.triu(y, diagonal=2)",
    "what is left of one": "torch.erf(y) - torch.erfc(y)",
    "another order": "torch.linalg.vector_norm(y, ord=1, dim=0) - torch.linalg.vector_norm(y, ord=3, dim=0)",
    "another quantile": "y.quantile(0.1, 0) - y.quantile(0.9, 0)",
    "another slope": "F.leaky_relu(y, 0.1) - F.leaky_relu(y, 0.3)",
    "drawn twice": "F.rrelu(y, training=True) - F.rrelu(y, training=True)",
    "other constants": "(y + torch.arange(8)) - (y + torch.ones(8))",
    "other constants of a choice": "torch.where(d > 0, y, torch.ones(8)) - torch.where(d > 0, y, torch.zeros(8))",
    "another limit by name": "torch.clamp(y, min=d) - torch.clamp(y, min=y + 3)",
    "another factor by name": "torch.mul(y, other=d) - torch.mul(y, other=d + 1)",
    "sorted along another axis": "y.sort(0).values.diff(dim=1)",
    "nothing of the second": "torch.add(d, 5 * (s := y.sigmoid()), alpha=0) - s",
}
CALLS = {
    "other views": "outs = []\nfor t in (d, d.flip(0)):\n    outs.append(d - t)",
    "views of other calls": "outs = []\nfor t in (d[:, :4], d[:, 4:]):\n    outs.append(t - d[:, :4])",
    "other casts": "outs = []\nfor t in ((9 * y).bool().float(), 9 * y):\n    outs.append(t * 2)",
    "other casts of what is not zero": "outs = []\nfor t in (d - 7, (d - 7).bool().float()):\n    outs.append(t * 2)",
    "other integers":
        "m = (x > 0).long()\na, b = m + 1, 3 * m\nouts = []\n"
        "for i, j in ((a, a), (a, b)):\n    outs.append(i * y - j * y)",
    "another mask":
        "m = torch.ones(6, 8).tril()\nouts = []\nfor k in (m, 0 * m):\n    outs.append(((d + 1) * k).sum(-1))",
    "no longer one-hot":
        "outs = []\nfor k in (F.one_hot(d.argmax(-1), 8), torch.zeros(6, 8).long()):\n"
        "    outs.append(k.float().sum(-1))",
}  # fmt: skip
WRITTEN = {
    "ones that are written over": "o = torch.ones(6, 8)\na = d * o\no[:, 2:] = 7\nreturn a - d * o",
    "ones like another": "o = torch.ones_like(x)\na = d * o\no[:, 2:] = 7\nreturn a - d * o",
    "numbers that are drawn again": "r = torch.rand(6, 8)\na = r * 1\nr.uniform_(2, 3)\nreturn a - r * 1",
    "segments of another index":
        "i, y = torch.randint(0, 2, (6,)), d[:, 0]\n"
        "m = torch.zeros(2).scatter_reduce(0, i, y, 'amax')\nreturn y - m[1 - i]",
    "a part after a cast": "v = (200 * d).to(torch.uint8).double()\nw = v.view(-1)\nw[::2] = -0.5\nreturn w",
    "all after a cast": "w = d.bool().double().detach()\nw.mul_(-0.5)\nreturn w * 1",
}  # fmt: skip


def _hold(forward: str, frontend: str, tmp_path: Path, *, by_calls: bool = True) -> None:
    found, output = bounds_and_output(forward, frontend, tmp_path, by_calls=by_calls)
    assert found.low - 1e-5 <= float(output.min()) <= float(output.max()) <= found.high + 1e-5


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize("written", OTHERWISE.values(), ids=OTHERWISE)
def test_sites_that_differ_in_an_argument_are_not_the_same(written: str, frontend: str, tmp_path: Path) -> None:
    _hold(f"{START}y = 2 * x\nreturn {written}", frontend, tmp_path)


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize("lines", CALLS.values(), ids=CALLS)
def test_what_the_first_call_reads_does_not_stand_for_the_others(lines: str, frontend: str, tmp_path: Path) -> None:
    _hold(f"{START}y = 2 * x\n{lines}\nreturn torch.cat(outs)", frontend, tmp_path, by_calls=False)


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize("lines", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_is_not_what_was_made_or_cast_before(lines: str, frontend: str, tmp_path: Path) -> None:
    _hold(START + lines, frontend, tmp_path)
