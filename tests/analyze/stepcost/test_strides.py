"""Copies and slower reads of tensors that are not contiguous, by the order of their dimensions in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from amptune.analyze.sitefacts.enrich import enrich
from amptune.analyze.stepcost.kernels import Move, Setting, SiteKernels
from amptune.analyze.stepcost.memory import step_memory
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.analyze.stepcost.strides import copies, copy_kind, kept_copies
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.graph import Gemm, Param, Site
from amptune.core.recipes import RECIPES
from amptune.core.roofline import Traffic
from tests.analyze.graphs import graph_of, op, tensor

TURNED, SWAPPED = (0, 2, 1), (1, 0, 2)
SHAPE = (64, 128, 256)
BYTES = 4 * 64 * 128 * 256


def _kernels(site: Site, *, fixed: bool = False) -> SiteKernels:
    setting = Setting(RECIPES["fp32"], fixed=fixed)
    return kernels_of(site, realise(graph_of(site), setting.recipe)[site.id], setting)


def _moves(site: Site, kind: Traffic) -> tuple[float, float]:
    """Bytes that kernels of this kind move, forward and backward."""
    found = _kernels(site)
    ahead, behind = (
        sum(each.bytes for each in kernels if isinstance(each, Move) and each.traffic is kind)
        for kernels in (found.forward, found.backward)
    )
    return ahead, behind


def _strided(site: Site, **orders: tuple[int, ...]) -> Site:
    strided = {int(place.removeprefix("at")): order for place, order in orders.items()}
    return dataclasses.replace(site, attrs={**site.attrs, "strided": strided})


def _linear() -> Site:
    return Site("head", "linear", "module", "head", inputs=(tensor(*SHAPE),), outputs=(tensor(64, 128, 512),),
                params=(Param("head.weight", tensor(512, 256), "w"), Param("head.bias", tensor(512), "b")),
                sources=("x",), gemms=(Gemm(64 * 128, 512, 256),))  # fmt: skip


def test_a_linear_layer_copies_an_operand_that_lies_otherwise_and_adds_its_bias_apart() -> None:
    made = 4 * 64 * 128 * 512
    assert _moves(_linear(), Traffic.UNROLLED) == (0, 0)
    assert _moves(_strided(_linear(), at0=TURNED), Traffic.TURNED) == (2 * BYTES, 2 * BYTES)
    assert _moves(_strided(_linear(), at0=TURNED), Traffic.UNROLLED) == (2 * made, 0)
    assert _moves(_strided(_linear(), at0=SWAPPED), Traffic.LAYOUT) == (2 * BYTES, 2 * BYTES)  # rows stay whole


def test_a_norm_copies_what_lies_across_its_rows() -> None:
    norm = Site("norm", "layer_norm", "module", "norm", inputs=(tensor(*SHAPE),), outputs=(tensor(*SHAPE),),
                params=(Param("norm.weight", tensor(256), "w"),), sources=("x",))  # fmt: skip
    assert _moves(norm, Traffic.TURNED) == (0, 0)
    assert _moves(_strided(norm, at0=TURNED), Traffic.TURNED) == (2 * BYTES, 2 * BYTES)


def test_a_product_of_batches_copies_heads_that_lie_between_tokens() -> None:
    heads = tensor(8, 12, 128, 64)
    product = Site("scores", "matmul", "function", "", inputs=(heads, heads), outputs=(tensor(8, 12, 128, 128),),
                   sources=("q", "k"), gemms=(Gemm(128, 128, 64, 96),))  # fmt: skip
    assert _moves(_strided(product, at1=(0, 1, 3, 2)), Traffic.TURNED) == (0, 0)  # the library reads either way
    assert _moves(_strided(product, at0=(0, 2, 1, 3)), Traffic.LAYOUT)[0] == 2 * 4 * heads.numel


def test_an_einsum_copies_what_it_says() -> None:
    heads = tensor(8, 128, 12, 64)
    product = Site("scores", "einsum", "function", "", inputs=(heads, heads), outputs=(tensor(8, 12, 128, 128),),
                   sources=("q", "k"), gemms=(Gemm(128, 128, 64, 96),))  # fmt: skip
    found = dataclasses.replace(product, attrs={"rearranged": {"rows": 100, "turned_back": 10}})
    assert _moves(product, Traffic.LAYOUT) == _moves(product, Traffic.TURNED) == (0, 0)
    assert _moves(found, Traffic.LAYOUT) == (2 * 4 * 100, 0)
    assert _moves(found, Traffic.TURNED) == (0, 2 * 4 * 10)


@pytest.mark.parametrize("orders", [{}, {"at0": TURNED, "at1": TURNED}])
def test_a_sum_of_tensors_that_lie_alike_reads_them_in_order(orders: dict[str, tuple[int, ...]]) -> None:
    site = _strided(op("sum", "add", "x", "y", shape=SHAPE), **orders)
    assert _moves(site, Traffic.TURNED) == (0, 0)


def test_a_sum_of_tensors_that_lie_differently_reads_one_across_its_rows() -> None:
    site = _strided(op("sum", "add", "x", "y", shape=SHAPE), at1=TURNED)
    assert _moves(site, Traffic.TURNED) == (2 * BYTES, 0)
    assert _moves(site, Traffic.POINTWISE)[0] == 0


def test_the_order_in_memory_is_read_off_the_captured_tensors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.patches, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(64, 8)\n"
        "    def forward(self, x):\n"
        "        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))\n"
        "        return self.head(x.transpose(1, 2)).sum()\n"
        "def make_model():\n    return Model()\n"
        "def make_batch():\n    return torch.randn(2, 3, 32, 32), torch.zeros(2)\n"
        "def loss_fn(output, batch):\n    return output\n"
    )
    captured = capture(load_target(TargetSpec(str(tmp_path / "model.py"), {})))
    enrich(captured.graph, captured.graph_module)
    assert captured.graph["norm"].attrs["strided"] == {0: TURNED}
    assert captured.graph["head"].attrs["strided"] == {0: TURNED}
    assert "strided" not in captured.graph["patches"].attrs


def test_whole_tensors_are_put_together_faster_than_pieces_of_others() -> None:
    joined = op("all", "cat", "x", "y", shape=SHAPE)
    assert _moves(joined, Traffic.JOINED)[0] > 0
    piece = _strided(joined, at1=(0, 1, 2))
    assert _moves(piece, Traffic.JOINED)[0] == 0
    assert _moves(piece, Traffic.LAYOUT)[0] > 0


def test_the_gradient_of_what_is_taken_off_is_turned_round() -> None:
    assert _moves(op("sum", "add", "x", "y", shape=SHAPE), Traffic.POINTWISE) == (3 * BYTES, 0)
    assert _moves(op("rest", "sub", "x", "y", shape=SHAPE), Traffic.POINTWISE) == (3 * BYTES, 2 * BYTES)


def test_what_is_overwritten_and_needed_again_is_copied_first() -> None:
    for name, kept in (("hardtanh", 2 * BYTES), ("relu", 0)):  # a relu needs its result alone
        plain, written = op("act", name, "x", shape=SHAPE), op("act", name, "x", shape=SHAPE, inplace=True)
        assert _moves(plain, Traffic.JOINED) == (0, 0)
        assert _moves(written, Traffic.JOINED) == (kept, 0)


def test_a_copy_into_rows_of_what_lies_across_them_is_slower() -> None:
    pad = op("#pad.0", "pad", "x", shape=SHAPE)
    assert _moves(pad, Traffic.TURNED) == (0, 0)
    assert _moves(_strided(pad, at0=TURNED), Traffic.TURNED) == (2 * BYTES, 0)
    assert _moves(_strided(pad, at0=SWAPPED), Traffic.TURNED) == (0, 0)


@pytest.mark.parametrize(("width", "kind"), [(1024, Traffic.TURNED), (256, Traffic.TURNED), (128, Traffic.UNROLLED)])
def test_neighbours_in_memory_that_one_block_of_threads_copies_share_what_is_fetched(width: int, kind: Traffic) -> None:
    assert copy_kind((64, 100, width), TURNED) is kind
    assert copy_kind((64, 100, width), SWAPPED) is Traffic.LAYOUT


SEQUENCES = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)
    def forward(self, x):
        x = self.first(x){raised}
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)).sum()
def make_model():
    return Model()
def make_batch():
    return torch.randn(4, 16, 64), torch.zeros(4)
def loss_fn(output, batch):
    return output
"""


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
@pytest.mark.parametrize(
    ("raised", "recipe", "in_rows"),
    [("", "fp32", True), ("", "autocast-fp16", True), ("", "autocast-bf16", False), (" + x", "autocast-bf16", True)],
)
def test_a_batch_norm_over_sequences_is_given_rows_and_leaves_rows(
    frontend: str, raised: str, recipe: str, in_rows: bool, tmp_path: Path
) -> None:
    """cuDNN's copies its operand and keeps the copy; what reads its result turned back copies that. torch's own, for
    BF16, does neither."""
    (tmp_path / "model.py").write_text(SEQUENCES.replace("{raised}", raised))
    captured = capture(load_target(TargetSpec(str(tmp_path / "model.py"), {})), frontends=[frontend])
    enrich(captured.graph, captured.graph_module)
    dtypes = realise(captured.graph, RECIPES[recipe])
    norm, head = captured.graph["norm"], captured.graph["head"]
    assert head.attrs["strided"] == {0: TURNED}
    for site in (norm, head):
        assert kept_copies(site, dtypes[site.id]) == ({0} if in_rows else set())

    def copied(*, backward: bool) -> list[int]:
        return [len(list(copies(site, dtypes[site.id], backward=backward))) for site in (norm, head)]

    assert copied(backward=False) == ([1, 2] if in_rows else [0, 0])  # and the bias of the layer behind it
    assert copied(backward=True) == ([1, 0] if in_rows else [0, 0])


def test_what_autograd_keeps_of_a_turned_operand_is_the_copy() -> None:
    def kept(site: Site) -> int:
        graph = graph_of(op("x", "exp", "input", shape=SHAPE), site)
        return step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"])).activations

    assert kept(_strided(_linear(), at0=TURNED)) - kept(_linear()) == BYTES
