"""Facts that only the fx nodes have, the same from every frontend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amptune.analyze.sitefacts.enrich import enrich
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, PrecisionGraph
from amptune.core.recipes import RECIPES

FRONTENDS = ["export", "record-fake", "record-real"]
MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def outer(self, x, dtype):
        return masked(x, dtype=dtype)

    def forward(self, x):
        h = self.fc(x)
{body}


def masked(x, dtype):
    return x.to(dtype)


def make_model():
    return Model()


def make_batch():
    return torch.randn(4, 8), None


def loss_fn(output, batch):
    return output.sum()
"""


def graph_of(body: str, folder: Path, frontend: str) -> PrecisionGraph:
    file = folder / "model.py"
    file.write_text(MODEL.format(body=f"        {body}"))
    captured = capture(load_target(TargetSpec(str(file))), frontends=(frontend,))
    enrich(captured.graph, captured.graph_module)
    return captured.graph


def attrs(body: str, folder: Path, frontend: str, site: str) -> Mapping[str, Any]:
    return graph_of(body, folder, frontend)[site].attrs


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("body", "site", "operands", "scalars"),
    [
        ("return h * h", "#mul.0", [0, 0], None),
        ("return h + 1e-8", "#add.0", [0, None], {1: 1e-8}),
        ("return 1 - h", "#sub.0", [None, 0], {0: 1}),
        ("return 2.0 / h", "#div.0", [None, 0], {0: 2.0}),
        ("return h / x", "#div.0", [0, 1], None),
        ("return self.fc.bias - h", "#sub.0", [None, 0], None),
    ],
)
def test_operands(
    body: str, site: str, operands: list[int | None], scalars: dict[int, float] | None, frontend: str, tmp_path: Path
) -> None:
    found = attrs(body, tmp_path, frontend, site)
    assert found["operands"] == operands
    assert (found.get("scalars") or None) == scalars


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return h.float().var(-1)", {0: "float32"}),
        ("return h.to(torch.float32).var(-1)", {0: "float32"}),
        ("return h.half().var(-1)", {0: "float16"}),
        ("return h.to(x.device).var(-1)", None),
        ("return h.transpose(0, 1).float().transpose(0, 1).var(-1)", {0: "float32"}),
        ("return h.var(-1)", None),
    ],
)
def test_casts(body: str, expected: dict[int, str] | None, frontend: str, tmp_path: Path) -> None:
    assert attrs(body, tmp_path, frontend, "#var.0").get("casts") == expected


@pytest.mark.parametrize("frontend", ["record-fake", "record-real"])
def test_a_cast_beside_the_tensor_leaves_the_tensor_alone(frontend: str, tmp_path: Path) -> None:
    graph = graph_of("y = h.float(); return y.var(-1) + h.std(-1)", tmp_path, frontend)
    assert graph["#var.0"].attrs["casts"] == {0: "float32"}
    assert "casts" not in graph["#std.0"].attrs


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_zeros_like_names_its_template(frontend: str, tmp_path: Path) -> None:
    found = attrs("return torch.zeros_like(h) + h", tmp_path, frontend, "#add.0")
    assert found["like"] == {0: "fc"}


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", ["h.float().new_zeros(4, 8)", "torch.zeros_like(h.float()[:, :8])"])
def test_a_template_may_be_cast_first(make: str, frontend: str, tmp_path: Path) -> None:
    graph = graph_of(f"return (self.fc.weight[:4] @ {make}.T).var(-1)", tmp_path, frontend)
    assert graph["#matmul.0"].attrs["casts"] == {0: "float32"}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_random_numbers_written_over_an_empty_tensor_have_its_dtype(frontend: str, tmp_path: Path) -> None:
    graph = graph_of("return (h - torch.empty_like(h).exponential_().log()).var(-1)", tmp_path, frontend)
    assert graph["#log.0"].attrs["like"] == {0: "fc"}
    assert realise(graph, RECIPES["autocast-bf16"], "cpu")["#log.0"].outputs == ("bfloat16",)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_ones_like_a_tensor_of_ones_are_in_its_dtype(frontend: str, tmp_path: Path) -> None:
    body = "mask = torch.ones(4, 8, device=x.device); return h + torch.cumsum(torch.ones_like(mask) / 2, 1)"
    graph = graph_of(body, tmp_path, frontend)
    assert realise(graph, RECIPES["autocast-bf16"])["#div.0"].outputs == ("float32",)
    batch = graph_of("return h + torch.cumsum(torch.ones_like(x) / 2, 1)", tmp_path, frontend)
    assert batch["#div.0"].attrs["like"] == {0: INPUT}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_positions_are_counted(frontend: str, tmp_path: Path) -> None:
    body = "return torch.arange(32.0, device=x.device).view(4, 8) * h"
    assert attrs(body, tmp_path, frontend, "#mul.0")["integers"] == {0: 32}


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return h.to(x.dtype).var(-1)", INPUT),
        ("y = h * 2; return x.to(y.dtype).var(-1)", "#mul.0"),
        ("kept = h.dtype; y = torch.tanh(h.float()); return y.to(kept).var(-1)", "fc"),
        (
            "kept = h.dtype\n        h = torch.tanh(h)\n        kept = h.dtype\n        return x.to(kept).var(-1)",
            "#tanh.0",
        ),
        ("y = h.transpose(0, 1); return x.to(dtype=y.dtype).var(-1)", "fc"),
        ("return h.to(self.fc.weight.dtype).var(-1)", INPUT),
        ("self.kept, size = h.dtype, h.shape; return x.to(self.kept).var(-1)", "fc"),
        ("self.kept = x.dtype; self.kept = h.dtype; return x.to(self.kept).var(-1)", "fc"),
        ("return x.type_as(h).var(-1)", "fc"),
        ("h += x; return x.type_as(h.float().to(h.dtype)).var(-1)", "#add.0"),
        ("return masked(x, dtype=h.dtype).var(-1)", "fc"),
        ("kept = h.dtype; return masked(x, kept).var(-1)", "fc"),
        ("return self.outer(x, h.dtype).var(-1)", "fc"),
    ],
)
def test_a_cast_may_follow_another_tensor(body: str, expected: str, frontend: str, tmp_path: Path) -> None:
    attrs = graph_of(body, tmp_path, frontend)["#var.0"].attrs
    assert attrs["like"] == {0: expected}
    assert not attrs["casts"]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_the_empty_start_of_a_cache_has_the_dtype_that_it_was_made_in(frontend: str, tmp_path: Path) -> None:
    body = (
        "self.kept, self.place = h.dtype, h.device\n"
        "        start = torch.tensor([], dtype=self.kept, device=self.place)\n"
        "        return torch.cat([start, h]).var(-1)"
    )
    graph = graph_of(body, tmp_path, frontend)
    assert graph["#cat.0"].attrs["like"] == {0: "fc"}
    assert realise(graph, RECIPES["autocast-fp16"])["#cat.0"].outputs == ("float16",)


def test_a_cast_to_the_dtype_of_what_was_cast_is_that_cast(tmp_path: Path) -> None:
    graph = graph_of("y = h.half(); return x.to(y.dtype).var(-1)", tmp_path, "record-fake")
    assert graph["#var.0"].attrs["casts"] == {0: "float16"}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_parameter_may_be_cast_too(frontend: str, tmp_path: Path) -> None:
    body = (
        "h[torch.zeros(4, 8, dtype=torch.bool)] = self.fc.bias.sum().to(h.dtype); return h * self.fc.bias.to(h.dtype)"
    )
    graph = graph_of(body, tmp_path, frontend)
    assert graph["#mul.0"].attrs["param_casts"] == {"fc.bias": ""}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_parameter_that_is_cast_to_the_dtype_of_another_stays_what_it_is(frontend: str, tmp_path: Path) -> None:
    body = "kept = self.fc.weight.dtype; return torch.cat([self.fc.bias.expand(4, 8).to(kept), h]).var(-1)"
    graph = graph_of(body, tmp_path, frontend)
    assert "param_casts" not in graph["#cat.0"].attrs
    assert realise(graph, RECIPES["autocast-bf16"])["#cat.0"].outputs == ("float32",)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_views_on_the_way_are_counted_and_a_reshape_of_a_transposed_tensor_is_a_copy(
    frontend: str, tmp_path: Path
) -> None:
    found = attrs("return torch.relu(h.view(2, 2, 8).transpose(1, 2).reshape(2, 16))", tmp_path, frontend, "#relu.0")
    assert found["viewed"] == 3
    assert found["copied"] == 32


@pytest.mark.parametrize("frontend", ["record-fake", "record-real"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # Two leading dimensions that a product of batches cannot take as one: both operands are cloned, and so is the
        # gradient that comes back in the result's order.
        ("q = h.view(2, 2, 2, 4); return torch.einsum('bthd,bshd->bhts', q, q * 2)", {"rows": 64}),
        ("q = h.view(2, 2, 8); return torch.einsum('btd,bsd->bts', q, q * 2)", None),
        ("q = h.view(2, 2, 2, 4); return torch.einsum('bhtd,bshd->bths', q, q * 2)", {"rows": 32, "rows_back": 16}),
    ],
)
def test_what_an_einsum_copies(body: str, expected: dict[str, int] | None, frontend: str, tmp_path: Path) -> None:
    assert attrs(body, tmp_path, frontend, "#einsum.0").get("rearranged") == expected


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_mask_with_a_strided_last_dimension(frontend: str, tmp_path: Path) -> None:
    body = "q = h.view(1, 2, 2, 8); return F.scaled_dot_product_attention(q, q, q, attn_mask={})"
    plain = attrs(body.format("h[:2, :2]"), tmp_path, frontend, "#scaled_dot_product_attention.0")
    turned = attrs(body.format("h[:2, :2].t()"), tmp_path, frontend, "#scaled_dot_product_attention.0")
    assert "mask_strided" not in plain
    assert turned["mask_strided"] is True


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("given", "expected"), [("h.view(4, 8)[None]", False), ("h.t()[None]", True)])
def test_a_sequence_keeps_its_layout_through_convolutions(
    given: str, expected: bool, frontend: str, tmp_path: Path
) -> None:
    taps = "self.fc.weight.flatten()[: {0} * {0}].view({0}, {0}, 1)"
    body = f"w = {taps.format('x.shape[1]')}; y = torch.conv1d(x, w); return torch.conv1d(torch.relu(y) * 2, w)"
    graph = graph_of(f"x = {given}.expand(2, -1, -1); {body}", tmp_path, frontend)
    assert [graph[f"#conv1d.{number}"].attrs["channels_last"] for number in (0, 1)] == [expected] * 2


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_padding_puts_a_sequence_into_rows(frontend: str, tmp_path: Path) -> None:
    weight = "self.fc.weight.flatten()[: x.shape[1] ** 2].view(x.shape[1], x.shape[1], 1)"
    body = f"x = h.t()[None].expand(2, -1, -1); w = {weight}; y = torch.conv1d(F.pad(x, (1, 0)), w); return y"
    assert graph_of(body, tmp_path, frontend)["#conv1d.0"].attrs["channels_last"] is False


class Reductions(TorchDispatchMode):
    """How often a constant is read along an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.any.dim, torch.ops.aten.all.dim)
        return func(*args, **(kwargs or {}))


TABLE = """\
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x, table):
        return self.fc(x) * table[None]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range({layers}))

    def forward(self, x):
        angles = torch.arange(32.0)[:, None] * torch.arange(16.0)
        table = angles.sin()
        for layer in self.layers:
            x = layer(x, table)
        return x


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 32, 16), None
"""


def test_a_table_that_all_layers_multiply_with_is_looked_at_once(tmp_path: Path) -> None:
    counts = []
    for layers in (2, 8):
        path = tmp_path / "model.py"
        path.write_text(TABLE.format(layers=layers))
        found = capture(load_target(TargetSpec(str(path))), frontends=["record-fake"])
        with Reductions() as seen:
            enrich(found.graph, found.graph_module)
        counts.append(seen.count)
    assert counts[0] == counts[1] > 0
