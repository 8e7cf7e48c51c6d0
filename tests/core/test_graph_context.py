"""What a graph rule can ask: shares over repeated blocks, runs, words for messages."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.graph_context import GraphContext, formats_in, listed, recipes_in
from amptune.core.hardware import GPUS, gpus_named
from amptune.core.ops import Family
from amptune.core.recipes import RECIPES, recipe_named
from amptune.errors import UsageError
from tests.analyze.graphs import graph_of, linear, mlp, op


def context(*gpus: str, **more: object) -> GraphContext:
    return GraphContext(mlp(m=256, width=256, layers=4), gpus_named(gpus or ("h100",)), **more)  # type: ignore[arg-type]


def test_repeated_blocks_share_a_share() -> None:
    found = context()
    site = found.graph["layers.2"]
    assert found.share(site) == pytest.approx(1.0)
    assert found.repeats(site) == 4


def test_blocks_without_lines_are_known_by_their_paths() -> None:
    sites = [linear("a.0", INPUT, 64, 64, 64), linear("a.1", "a.0", 64, 64, 64), linear("b", "a.1", 64, 64, 64)]
    bare = [dataclasses.replace(site, location=None) for site in sites]
    found = GraphContext(graph_of(*bare), (GPUS["h100"],))
    assert found.repeats(found.graph["a.0"]) == 2
    assert found.share(found.graph["b"]) == pytest.approx(1 / 3)


def test_small_products_are_not_worth_a_word() -> None:
    sites = [linear("big", INPUT, 1024, 1024, 1024), dataclasses.replace(linear("tiny", "big", 2, 1024, 8, line=2))]
    found = GraphContext(graph_of(*sites), (GPUS["h100"],))
    assert [site.id for site, _ in found.large_gemms(Family.GEMM)] == ["big"]


@pytest.mark.parametrize(
    ("gpus", "labels"),
    [(("h100",), ["fp32", "autocast-bf16", "autocast-fp16"]),
     (("cpu",), ["fp32 on the CPU", "autocast-bf16 on the CPU", "autocast-fp16 on the CPU"])],
)  # fmt: skip
def test_one_run_for_each_recipe_and_type_of_device(gpus: tuple[str, ...], labels: list[str]) -> None:
    assert [run.label for run in context(*gpus).runs] == labels


def test_two_gpus_are_one_type_of_device() -> None:
    assert len(context("h100", "a100").runs) == 3
    assert len(context("h100", "cpu").runs) == 6


def test_sites_in_half_and_the_words_for_them() -> None:
    graph = graph_of(linear("fc", INPUT, 8, 16, 16), op("#var.0", "var", "fc"))
    found = GraphContext(graph, (GPUS["h100"],))
    ((site, runs),) = found.sites_in_half("var")
    assert site.id == "#var.0"
    assert formats_in(runs, site) == (Format.FP16, Format.BF16)
    assert recipes_in(runs) == "autocast-bf16 and autocast-fp16"
    assert found.realised(RECIPES["autocast-fp16"])["#var.0"].compute == "float16"


def test_a_finding_without_a_line_points_at_the_models_file() -> None:
    from amptune_rules.graph.g405_arch_no_bf16 import ArchNoBf16

    found = context(path="net.py").finding(ArchNoBf16(), None, "words")
    assert (found.location.path, found.location.line, found.site) == ("net.py", 1, None)


def test_lists_of_gpus() -> None:
    assert listed(gpus_named(("v100",))) == "v100 (sm_70)"
    assert listed(gpus_named(("v100", "t4", "a100"))) == "v100 (sm_70), t4 (sm_75) and a100 (sm_80)"


def test_unknown_recipe() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_named("fp8-tensorwize")
    assert "did you mean fp8-tensorwise?" in (caught.value.hint or "")


def test_what_reads_a_later_call_has_the_dtype_of_that_call() -> None:
    """A dropout that is called on a 16-bit and then on an FP32 tensor gives both."""
    shared = [linear("fc", INPUT, 8, 16, 16), op("drop", "dropout", "fc"), op("sum", "add", "drop", INPUT)]
    sites = graph_of(*shared, op("norm", "tanh", "drop"))
    calls = graph_of(*shared, op("drop@2", "dropout", "sum"), op("norm", "tanh", "drop@2"))
    found = GraphContext(sites, (GPUS["h100"],), recipes=(RECIPES["autocast-bf16"],), calls=calls)
    assert found.runs[0].dtypes["norm"].outputs == ("float32",)
    assert found.realised(RECIPES["autocast-bf16"])["drop"].outputs == ("bfloat16",)


def test_what_weights_have_a_part_in() -> None:
    sites = [op("scaled", "mul", INPUT), linear("fc", "scaled", 8, 16, 16), op("next", "add", "fc", "scaled"),
             op("target", "exp", INPUT), op("loss", "sub", "next", "target")]  # fmt: skip
    assert GraphContext(graph_of(*sites), (GPUS["h100"],)).weighted - {"<output>"} == {"fc", "next", "loss"}
