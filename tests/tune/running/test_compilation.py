"""Compile mode: what is compiled, how often, and that it is taken back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import Plan, SitePlan
from amptune.runtime import loss_in
from amptune.tune.choices.space import COMPILED_LOSS
from amptune.tune.prices.losses import PLAIN_LOSS
from amptune.tune.running.compilation import (
    RECOMPILE_LIMIT,
    Compilation,
    cause_in_compiler,
    compile_apart,
    compiled,
    forget_compiled,
    parts_to_compile,
    repeated_blocks,
)
from amptune.tune.running.recipes import Candidate, float8_candidate, plan_candidate
from amptune.tune.running.timing import measure_step
from amptune.tune.running.training import eager, training
from amptune.tune.study.outcomes import outcome_of
from amptune.tune.study.trial import Outcome
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import Make

# torch.compile looks at the .grad of what enters a block.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(x).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.stages = nn.ModuleList([nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block(), nn.ReLU())])
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


def test_repeated_blocks_are_the_outermost_of_a_class() -> None:
    net = Net()
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    assert [id(block) for block in repeated_blocks(net)] == [id(block) for block in blocks]
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == []
    nested = nn.ModuleList([nn.ModuleDict({"inner": Net()}), nn.ModuleDict({"inner": Net()})])
    assert len(repeated_blocks(nested)) == 2 * len(blocks)


def test_what_multiplies_outside_the_blocks_is_compiled_too() -> None:
    """A head left in eager mode would cost a trial more than what its blocks gain."""
    net = Net()
    model = nn.ModuleDict({"tokens": nn.Embedding(5, 8), "net": net, "more": nn.ModuleList([nn.Linear(8, 8)])})
    parts = parts_to_compile(model, "blocks")
    outside = [part for part in parts if not isinstance(part, Block)]
    assert [id(part) for part in outside] == [id(net.stem), id(net.head), id(model["more"][0])]
    assert len(parts) == len(outside) + len(repeated_blocks(net))
    assert parts_to_compile(model, "whole") == [model]
    assert parts_to_compile(net.head, "blocks") == [net.head], "no blocks: the whole model"


@pytest.mark.parametrize("scope", ["blocks", "whole"])
def test_compiled_parts_run_and_are_set_back(scope: str) -> None:
    model = Net()
    x = torch.randn(3, 8)
    expected = model(x)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with compiled(model, Compilation("aot_eager", scope)):  # type: ignore[arg-type]
        assert torch.allclose(model(x), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


def test_a_part_of_torch_is_compiled() -> None:
    """By itself torch would leave a bare Linear in eager mode without a word."""
    model = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()]), "head": nn.Linear(8, 8)})
    before = num_graphs()
    with compiled(model, Compilation("aot_eager")):
        model["head"](torch.randn(3, 8))
    assert num_graphs() == before + 1


COMPILED = """
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return x + self.fc(F.gelu(self.norm(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_model():
    return Net()


def make_batch():
    return torch.randn(8, 16), torch.arange(8) % 5


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
"""


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_a_candidate_is_compiled_once_for_all_its_blocks_and_runs(make_bench: Make) -> None:
    """Blocks share their code, and training again under the same candidate finds it compiled."""
    bench, batches = make_bench(COMPILED)
    bench.compilation = Compilation("aot_eager")
    plan = plan_candidate(Plan({f"blocks.{i}.fc": SitePlan(Format.BF16) for i in range(3)}))
    for candidate in (Candidate("autocast-bf16", autocast=Format.BF16), plan):
        forget_compiled()
        torch._dynamo.utils.counters.clear()
        step, _, compiling = measure_step(bench, candidate, batches)
        assert step is not None
        assert compiling is not None
        first = num_graphs()
        assert first == 3, "a graph for the three blocks, one each for stem and head"
        with training(bench, candidate) as run:
            run.step(batches.train[0])
        assert num_graphs() == first


def test_a_loss_function_is_compiled_only_where_the_candidate_says_so(make_bench: Make) -> None:
    """``torch.compile(model)`` leaves it alone, so a stock recipe does; to compile it is a plan's choice."""
    bench, batches = make_bench(COMPILED)
    bench.compilation = Compilation("aot_eager")
    stock = Candidate("autocast-bf16", autocast=Format.BF16)
    graphs = {}
    plan = Plan({}, backend="aot_eager")
    for candidate in (stock, dataclasses.replace(stock, name="with-loss", loss_compile=True),
                      plan_candidate(plan), plan_candidate(dataclasses.replace(plan, loss_compile=True))):  # fmt: skip
        forget_compiled()
        torch._dynamo.utils.counters.clear()
        with training(bench, candidate) as run:
            run.step(batches.train[0])
        graphs[candidate.name, bool(candidate.plan and candidate.plan.loss_compile)] = num_graphs()
    assert list(graphs.values()) == [3, 4, 3, 4]


def test_eager_sets_compile_mode_aside(make_bench: Make) -> None:
    bench, batches = make_bench(COMPILED)
    bench.compilation = Compilation("aot_eager")
    torch._dynamo.utils.counters.clear()
    with eager(bench), training(bench, Candidate("fp32")) as run:
        run.step(batches.train[0])
    assert num_graphs() == 0
    assert bench.compilation == Compilation("aot_eager")


def _worker(tmp_path: Path, timeout: float | None = None) -> tuple[Worker, PrecisionGraph]:
    """The worker of a search in compile mode, and what it searches."""
    path = tmp_path / "net.py"
    path.write_text(COMPILED)
    spec = TargetSpec(str(path))
    options = TuneOptions(spec, tmp_path / "out", steps=2, timeout=timeout, compile_with="aot_eager")
    return Worker(Job(options, None, {}, (), threads=1), lambda *_: None), capture(load_target(spec)).graph


def test_rounding_errors_are_measured_without_compiling(tmp_path: Path) -> None:
    worker, graph = _worker(tmp_path)
    torch._dynamo.utils.counters.clear()
    found = worker.sensitivity(worker.space(graph))
    assert found.sites
    assert num_graphs() == 0  # a hook at each site would be compiled anew for each, up to the limit of recompiles


def _in_fp8() -> Candidate:
    eight = SitePlan(Format.FP8_E4M3, scaling="tensorwise")
    plain = {name: SitePlan(Format.FP32) for name in ("head", *(f"blocks.{i}.norm" for i in range(3)))}
    return plan_candidate(Plan(plain | dict.fromkeys(["stem", *(f"blocks.{i}.fc" for i in range(3))], eight)))


def test_fp8_whose_gradients_are_clearly_wrong_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = _worker(tmp_path)
    monkeypatch.setattr("amptune.tune.quality.gate.MIN_COSINE", 0.9999)
    worker.prepare()
    torch._dynamo.utils.counters.clear()
    measured = worker.trial(_in_fp8(), None)
    assert num_graphs() == 0
    outcome = outcome_of(Outcome("search", "failed"), measured)
    assert (outcome.state, outcome.step_ms) == ("invalid", None)
    assert outcome.noise is not None
    assert outcome.noise.worst > 1
    assert outcome.failing
    assert "points elsewhere" in outcome.reason
    assert outcome.reason.endswith("by its gradients in eager mode: not compiled")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own tracing
def test_fp8_whose_gradients_are_right_is_compiled_and_judged_as_it_ships(tmp_path: Path) -> None:
    worker, _ = _worker(tmp_path)
    measured = worker.trial(_in_fp8(), None)
    assert measured.step is not None
    assert "gradients" in measured.seconds
    assert num_graphs() > 0


@pytest.mark.parametrize(("timeout", "is_looked_at"), [(None, False), (60.0, True)])
def test_a_recipe_is_looked_at_ahead_where_time_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None, is_looked_at: bool
) -> None:
    worker, _ = _worker(tmp_path, timeout)
    monkeypatch.setattr("amptune.tune.running.training.float8_linears", lambda *_: contextlib.nullcontext())
    assert ("gradients" in worker.trial(float8_candidate("tensorwise"), None).seconds) == is_looked_at


def test_a_compiled_loss_is_a_choice_with_the_price_of_the_backend_that_is_asked_for(tmp_path: Path) -> None:
    worker, graph = _worker(tmp_path)
    space = worker.space(graph)
    assert space.losses == ("fp32", "follow", COMPILED_LOSS)
    assert set(worker.costs(space, graph).losses) == {PLAIN_LOSS, *space.losses}  # aot_eager needs no C++ compiler


def test_a_loss_is_compiled_for_each_kind_of_output_with_its_own_sizes() -> None:
    kinds: list[list[torch.Size]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        kinds.append([value.shape for value in inputs if isinstance(value, torch.Tensor)])
        return graph.forward

    loss = loss_in("fp32", compile=True, backend=backend)(lambda output: output.sum())
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True, recompile_limit=8):
        compile_apart()
        outputs = [torch.randn(4, width)[:, :5] for width in (5, 6, 7)] + [torch.randn(4, 5).bfloat16()]
        for output in (*outputs, *outputs):
            torch.testing.assert_close(loss(output), output.float().sum())
        assert torch._dynamo.config.recompile_limit == RECOMPILE_LIMIT
    assert len(kinds) == 4, "three strides and one more dtype, each compiled once"
    assert all(isinstance(size, int) for shapes in kinds for shape in shapes for size in shape)


@pytest.mark.parametrize("apart", [True, False])
def test_a_cache_that_mixes_up_autocast_regions_is_not_used_for_them(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Before torch 2.13 a model compiled under autocast in BF16 ran that code under FP16."""
    monkeypatch.setattr("amptune.tune.running.compilation.REGIONS_APART", apart)
    bench, _ = make_bench(COMPILED)
    bench.compilation = Compilation("aot_eager")
    config = torch._functorch.config
    with config.patch(enable_autograd_cache=True):
        with training(bench, Candidate("autocast-fp16", autocast=Format.FP16)):
            assert config.enable_autograd_cache is apart
        in_parts = Parts(("head",), "aot_eager").of_recipe(Candidate("autocast-fp16", autocast=Format.FP16))
        with training(bench, in_parts):
            assert config.enable_autograd_cache is apart
        with training(bench, plan_candidate(Plan({"head": SitePlan(Format.BF16)}))):
            assert config.enable_autograd_cache, "a plan's regions are part of the code that is looked up"


def test_what_the_compiler_stumbled_over_is_named_with_its_line() -> None:
    def mixes(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(3).scatter_add_(0, torch.tensor([0, 1]), x)

    def backend(*_: object) -> Callable[..., object]:
        raise ValueError("no such kernel")

    with pytest.raises(Exception) as mixed:  # noqa: PT011 - a class of the compiler's own
        torch.compile(mixes, backend="eager")(torch.ones(2, dtype=torch.bfloat16))
    said = cause_in_compiler(mixed.value)
    line = mixes.__code__.co_firstlineno + 1
    assert said.startswith("under torch.compile, RuntimeError: scatter(): Expected self.dtype to be equal to src.dtype")
    assert said.endswith(f"test_compilation.py:{line})")
    with pytest.raises(Exception) as refused:  # noqa: PT011
        torch.compile(torch.sin, backend=backend)(torch.ones(2))
    assert cause_in_compiler(refused.value).startswith("under torch.compile, ValueError: no such kernel")
    assert cause_in_compiler(ValueError("got RuntimeError('x')")) == ""


def test_blocks_of_other_sizes_are_compiled_for_theirs_alone() -> None:
    sizes: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        sizes.extend(value for value in inputs if not isinstance(value, torch.Tensor))
        return graph.forward

    blocks = nn.ModuleDict({"blocks": nn.ModuleList([Strided(2), Strided(4), Strided(8)])})
    with compiled(blocks, Compilation(backend)):  # type: ignore[arg-type]
        x = torch.randn(1, 2, 32, 32)
        for block in blocks["blocks"]:
            x = block(x)
    assert sizes == []


class Strided(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)
