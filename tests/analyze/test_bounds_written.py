"""Bounds hold for tensors that are written into: through views of all of them or of a part, before or after a read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from amptune_rules.graph._examples import model_file

from amptune.analyze.runner import enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.recipes import RECIPES

START = "d = torch.sigmoid(40 * self.fc(x))\n"
CLOSE = {
    "a slice is filled": ("d[:, 3:].fill_(-5)", "d", (-5, 1)),
    "a column is multiplied": ("d[..., 0].mul_(3)", "d", (0, 3)),
    "where a mask holds": ("d[x > 1] = 1e5", "d", (0, 1e5)),
    "every second number of all": ("d.view(-1)[::2].add_(7)", "d", (0, 8)),
    "a row is copied": ("d.select(1, 0).copy_(x[:, 0].sin() - 4)", "d", (-5, 1)),
    "a row of unbind": ("d.detach().unbind(0)[0].sub_(2)", "d", (-2, 1)),
    "a half": ("d.detach().chunk(2, 1)[1].neg_()", "d", (-1, 1)),
    "a masked view": ("d[1:].masked_fill_(x[1:] > 0, 9)", "d", (0, 9)),
    "by places": ("d.index_put_((torch.tensor([1]),), torch.tensor(4.0))", "d", (0, 4)),
    "a setting": ("d[:, 3] = -9.0", "d", (-9, 1)),
    "a setting of numbers": ("d[:, 3] = x[:, 3].sin() - 9", "d", (-10, 1)),
    "without a graph": ("d.detach()[0].fill_(3)", "d", (0, 3)),
    "into another": ("c = torch.zeros(6, 8)\ntorch.add(d.detach(), 7, out=c)", "c", (7, 8)),
    "into a part of zeros": ("c = torch.zeros(6, 8)\nc[:, 1:].add_(d[:, 1:] + 2)", "c", (0, 3)),
    "seen through an older view": ("v = d.t()\nd[0].add_(2)", "v", (0, 3)),
    "seen through another view": ("v = d[:, :4]\nd.view(-1).fill_(4)", "v", (4, 4)),
    "through a view of all": ("d.t().add_(5)", "d", (5, 6)),
    "two after each other": ("d[0].add_(2)\nd[1].mul_(9)", "d", (0, 27)),
    "read before": ("e = d + 0\nd[0].add_(2)", "e", (0, 1)),
    "another part of a split": ("e, other = d.detach().chunk(2, 1)\nother.add_(2)", "e", (0, 1)),
    "by name, into itself": ("e = d.detach()[0]\ntorch.add(e, -2, out=e)", "d", (-2, 1)),
    "spread inside of a loss": ("l = F.huber_loss(d, x.sigmoid())", "d", (0, 1)),
    "the second of two that are spread": ("_, e = torch.broadcast_tensors(torch.zeros(6, 8), d)", "e", (0, 1)),
    "less what it is in fewer digits": ("e = d - d.half().float()", "e", (-1, 1)),
    "picked by a list": ("e = (d + 5)[[1, 0]]", "e", (5, 6)),
    "all of a list": ("e = d + 0\ntorch._foreach_mul_([d.detach(), e], 9.0)", "d", None),
    "each of a list": ("e = d + 0\ntorch._foreach_add_([d.detach(), e], [e, d], alpha=5)", "e", None),
    "both outputs": (
        "e, i = torch.zeros(1, 8), torch.zeros(1, 8).long()\ntorch.max(-9 * d.detach(), 0, True, out=(e, i))",
        "e",
        None,
    ),
    "other memory": ("e = d.detach()\ne.set_(3 * e - 9)", "e", (-9, -6)),
    "other memory of a view": ("e = d.detach()\ne.set_(3 * e - 9)", "d", (0, 1)),
    "memory that is written later": ("e, f = d.detach() * 0, d.detach() + 1\ne.set_(f)\nf.mul_(3)", "e", (3, 6)),
    "a transposed view by einsum": ("torch.einsum('ij->ji', d.detach()).mul_(5)", "d", (0, 5)),
    "a diagonal by einsum": ("torch.einsum('ii->i', d[:, :6].detach()).fill_(5)", "d", (0, 5)),
    "a sum of squares by einsum": ("e = torch.einsum('ij,ij->', d, d)\nd.add_(7)\nd = e", "d", (0, 48)),
    "a sum by einsum": ("e = torch.einsum('ij->i', d)\nd.add_(7)\nd = e", "d", (0, 8)),
    "windows that overlap": ("d.detach().unfold(1, 3, 1).mul_(3)", "d", None),
    "windows that overlap, filled": ("d.detach().unfold(1, 3, 1).fill_(3)", "d", (0, 3)),
    "windows that do not overlap": ("d.detach().unfold(1, 2, 2).mul_(3)", "d", (0, 3)),
    "strides that overlap": ("d.detach().as_strided((4, 2), (1, 1)).add_(3)", "d", None),
    "beyond a view": ("v = d.detach()[0]\nv.fill_(7)\ne = v.as_strided((4,), (1,), 16)", "e", (0, 7)),
    "over all of it, beyond a view": (
        "v = d.detach()\nw = v[0]\nv.view(-1).fill_(7)\ne = w.as_strided((4,), (1,), 16)",
        "e",
        (7, 7),
    ),
    "a copy of what is turned": ("e = d.t().contiguous()\nd.detach().fill_(7)", "e", (0, 7)),
    "a copy of columns": ("e = d[:, 1:].reshape(-1)\nd.detach().fill_(7)", "e", (0, 7)),
    "a view of all in a row": ("e = d.detach().reshape(-1)\nd.detach().fill_(7)", "e", (7, 7)),
    "real parts of complex numbers": (
        "v = torch.view_as_real(torch.view_as_complex(d.detach().view(6, 4, 2)))\nv.mul_(-5)",
        "d",
        None,
    ),
    "a copy": ("e = d.clone()\ne[0].add_(2)", "d", (0, 1)),
}


def bounds_and_output(
    forward: str, frontend: Any, tmp_path: Path, *, by_calls: bool = True
) -> tuple[Range, torch.Tensor]:
    """Bounds of what a forward returns, with the calls of a site apart or not, and what it does return."""
    init = "torch.manual_seed(0)\nself.fc = nn.Linear(8, 8)"
    source = model_file(forward, init=init, batch="torch.randn(6, 8)", loss="output.mean()")
    file = tmp_path / "model.py"
    file.write_text(source)
    captured = capture(load_target(TargetSpec(str(file))), frontends=(frontend,))
    calls = enriched(captured)
    graph = calls if by_calls else captured.graph
    ranges = Ranges(graph, realise(graph, RECIPES["fp32"]))
    names: dict[str, Any] = {}
    exec(source, names)
    with torch.no_grad():
        output = names["make_model"]()(names["make_batch"]()[0])
    return ranges.operand(list(graph)[-1], 0), output


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize(("lines", "read", "expected"), CLOSE.values(), ids=CLOSE)
def test_what_is_written_is_in_the_bounds(
    lines: str, read: str, expected: tuple[float, float] | None, frontend: str, tmp_path: Path
) -> None:
    found, output = bounds_and_output(f"{START}{lines}\nreturn {read}", frontend, tmp_path)
    assert found.low - 1e-5 <= float(output.min()) <= float(output.max()) <= found.high + 1e-5
    assert expected is None or (found.low, found.high) == pytest.approx(expected)


DATA = {
    "of a view": "e = d.detach()\ne.data = x * 7",
    "multiplied": "d.data.mul_(5)",
    "set": "d.data = x * 7",
    "one row": "d.data[0] = 9.0",
    "through a name": "e = d.data\ne.add_(9)",
}


@pytest.mark.parametrize("lines", DATA.values(), ids=DATA)
def test_a_write_through_data_is_recorded_where_an_export_would_lose_it(lines: str, tmp_path: Path) -> None:
    source = model_file(f"{START}{lines}\nreturn d", init="self.fc = nn.Linear(8, 8)", batch="torch.randn(6, 8)")
    file = tmp_path / "model.py"
    file.write_text(source)
    assert capture(load_target(TargetSpec(str(file)))).frontend == "record-fake"
    found, output = bounds_and_output(f"{START}{lines}\nreturn d", "record-fake", tmp_path)
    assert found.low - 1e-5 <= float(output.min()) <= float(output.max()) <= found.high + 1e-5


UNRELATED = {
    "its largest number before a write": "m = d.amax(-1, keepdim=True)\nd[:, 0].add_(5)\nreturn d - m",
    "its sum before a write": "m = d.sum(-1, keepdim=True)\nd[:, 0].add_(5)\nreturn d / m",
    "itself before a write": "e = d * 1\nm = d * 1\nd[:, 0].add_(5)\nreturn d - e",
    "a row that no longer is one-hot":
        "p = F.one_hot(d.argmax(-1), 8)\np[:, 0] = 5\nq = p.float()\nreturn (q * torch.log(q + 1e-9)).sum(-1)",
}  # fmt: skip


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize("forward", UNRELATED.values(), ids=UNRELATED)
def test_a_relation_does_not_outlive_a_write(forward: str, frontend: str, tmp_path: Path) -> None:
    found, output = bounds_and_output(START + forward, frontend, tmp_path)
    assert found.low - 1e-5 <= float(output.min()) <= float(output.max()) <= found.high + 1e-5
