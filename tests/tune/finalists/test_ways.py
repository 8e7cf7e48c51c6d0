"""Compile mode of a model that takes long to compile: trials in eager mode, finalists in eager mode and compiled."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from amptune.capture import TargetSpec
from amptune.core.plan import Plan
from amptune.errors import TuneError
from amptune.tune.bench import rows_of
from amptune.tune.finalists import finals, finaltime
from amptune.tune.finalists.finals import Verdict, decide
from amptune.tune.finalists.finaltime import MAX_ROUNDS
from amptune.tune.finalists.judging import Judged, judge
from amptune.tune.finalists.speedup import ERROR
from amptune.tune.outputs.result import result_json
from amptune.tune.running import compilation
from amptune.tune.running.compilation import forget_compiled, is_dear, parts_to_compile, repeated_blocks
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.running.training import training, whole
from amptune.tune.search import Search
from amptune.tune.workers.job import Job, Measured
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError
from amptune.tune.workers.worker import Worker
from tests.tune.finalists.rounds import repeated
from tests.tune.hosts import Host
from tests.tune.running.test_compilation import COMPILED, num_graphs
from tests.tune.test_search import FormulaWorker, make_search, step

LAYERS = 30
DEAR = Parts(in_eager=True, num_layers=LAYERS)


class Compiler(FormulaWorker):
    """Compiled whole, recipes and plans take so many times their step in eager mode."""

    def __init__(self, recipes: float = 0.6, plans: float = 1.0, fails: str = "") -> None:
        super().__init__()
        self.recipes, self.plans, self.fails = recipes, plans, fails
        self.repeated: list[list[tuple[str, bool]]] = []
        self.candidates: list[Candidate] = []
        self.rounds: list[int] = []
        self.timeouts: list[float] = []
        self.compiled_memory: int | None = None
        self.compiling = 0.0
        self.now = 0.0

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            return self.trial(arguments[0])
        candidates, rounds, _, is_whole = arguments
        ways = [(candidate.name, is_whole and not candidate.eager) for candidate in candidates]
        is_new = ways not in self.repeated
        self.repeated.append(ways)
        self.candidates += candidates
        self.rounds.append(rounds)
        self.timeouts.append(timeout)
        if (self.fails, True) in ways:
            raise TrialError(f"{self.fails} cannot be compiled", worker_lost=False)
        if self.fails == "endless" and any(is_compiled for _, is_compiled in ways):
            raise TuneError("torch.compile compiles this model anew", hint="leave --compile out")
        self.now += self.compiling * sum(is_compiled for _, is_compiled in ways) if is_new else 0.1
        return [
            [self._step(candidate, name, is_compiled)] * rounds
            for candidate, (name, is_compiled) in zip(candidates, ways, strict=True)
        ]

    def _step(self, candidate: Candidate, name: str, is_compiled: bool) -> StepTime:
        memory = self.compiled_memory if is_compiled else self.memory(candidate)
        found = step(self.milliseconds(candidate) * (self._times(name) if is_compiled else 1.0))
        return dataclasses.replace(found, memory=memory)

    def _times(self, name: str) -> float:
        return self.plans if name == "plan" else self.recipes


def decided(
    folder: Path, worker: Compiler, budget: int = 12, parts: Parts = DEAR, **options: Any
) -> tuple[Search, Verdict, dict[str, Any]]:
    search = make_search(folder, worker, budget)
    search.parts = parts
    search.options = dataclasses.replace(search.options, compile_with="inductor", **options)
    search.run()
    verdict = decide(search)
    return search, verdict, result_json(search, verdict, 1.0, "plan.json")


def test_a_plan_in_eager_mode_is_judged_beside_the_recipe_as_it_is_compiled(tmp_path: Path) -> None:
    worker = Compiler(recipes=0.95, plans=1.5)
    _, verdict, data = decided(tmp_path, worker)
    trials = verdict.stock.outcome.ranked_ms / verdict.record.outcome.ranked_ms
    assert verdict.kind == "plan"
    assert verdict.speedup == pytest.approx(0.95 * trials)
    assert (data["compiled"], data["repeats"]["stock_in_eager"], data["trials_in_eager"]) == ("eager", False, True)
    assert worker.repeated[-1] == [("autocast-bf16", True), ("plan", False)], "of the formats alone, or the pair"


def test_a_plan_is_compiled_where_that_is_faster(tmp_path: Path) -> None:
    _, verdict, data = decided(tmp_path, Compiler(recipes=0.6, plans=0.5))
    assert verdict.kind == "plan"
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("whole", False)
    trials = verdict.stock.outcome.ranked_ms / verdict.record.outcome.ranked_ms
    assert verdict.speedup == pytest.approx(trials * 0.6 / 0.5)


def test_a_recipe_that_compiling_makes_faster_than_any_plan_stands(tmp_path: Path) -> None:
    _, verdict, data = decided(tmp_path, Compiler(recipes=0.3, plans=1.0))
    assert verdict.kind == "stock"
    assert verdict.step.median == pytest.approx(0.3 * verdict.stock.outcome.ranked_ms)
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("whole", False)


def test_a_recipe_that_compiling_slows_down_is_judged_in_eager_mode(tmp_path: Path) -> None:
    _, verdict, data = decided(tmp_path, Compiler(recipes=2.0, plans=2.0))
    assert verdict.kind == "plan"
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("eager", True)


def test_the_next_recipe_may_be_the_fastest_once_it_is_compiled(tmp_path: Path) -> None:
    worker = Compiler()
    decided(tmp_path, worker)
    ways = next(ways for ways in worker.repeated if ("plan", True) in ways)
    assert sum(is_compiled for name, is_compiled in ways if name != "plan") == 2


@pytest.mark.parametrize(("fails", "compiled"), [("plan", 1), ("autocast-bf16", 0)])
def test_what_cannot_be_compiled_is_left_in_eager_mode(tmp_path: Path, fails: str, compiled: int) -> None:
    worker = Compiler(recipes=0.95, fails=fails)
    _, verdict, data = decided(tmp_path, worker)
    assert verdict.kind == "plan"
    assert data["compiled"] == "eager"
    assert sum(is_compiled for _, is_compiled in worker.repeated[-1]) == compiled
    assert any(f"{fails} cannot be compiled" in note for note in data["notes"])


@pytest.mark.parametrize(("timeout", "compiled"), [(20.0, 0), (50.0, 1), (90.0, 2), (1000.0, 3)])
def test_as_much_is_compiled_as_there_is_time_for(tmp_path: Path, timeout: float, compiled: int) -> None:
    worker = Compiler(recipes=0.95)
    _, _, data = decided(tmp_path, worker, timeout=timeout)
    assert max(sum(is_compiled for _, is_compiled in ways) for ways in worker.repeated) == compiled
    assert any("time to compile" in note for note in data["notes"]) == (compiled < 3)


@pytest.mark.parametrize(("timeout", "seconds"), [(20.0, 0), (90.0, 2 * LAYERS)])
def test_what_is_said_of_the_time_of_the_repeats_has_that_of_compiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], timeout: float, seconds: float
) -> None:
    """It said 25 seconds and 61 at most, and compiling alone took over 90."""
    decided(tmp_path, Compiler(recipes=0.95), timeout=timeout)
    said = re.search(r"repeats take about (\d+) s or a little more, (\d+) s at most", capsys.readouterr().err)
    assert said
    about, most = map(int, said.groups())
    assert seconds <= about <= seconds + 20
    assert most >= 2 * seconds


@pytest.mark.parametrize(
    ("ways", "looks"),
    [({"fp32": 0.8, "plan": 0.8}, 3), ({"fp32": 1.3, "plan": 0.8}, 2), ({"fp32": 0.8, "plan": 1.3}, 2)],
)
def test_each_look_has_its_part_of_the_error(
    ways: dict[str, float], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe in parts is looked at beside a plan in parts; each of three looks had the error of one of two."""
    errors: list[float] = []

    def noted(*arguments: Any) -> Judged | TrialError:
        errors.append(arguments[-1])
        return judge(*arguments)

    monkeypatch.setattr(finals, "judge", noted)
    repeated(Host(0, calm=True), [1.1], ways=ways, in_parts=1.0)
    assert errors == [ERROR / looks]


def test_a_model_that_is_compiled_anew_in_each_step_is_left_in_eager_mode(tmp_path: Path) -> None:
    """Trials in eager mode do not show it, and its error ended the search after all of them."""
    worker = Compiler(fails="endless")
    _, verdict, data = decided(tmp_path, worker)
    assert verdict.kind == "plan"
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("eager", True)
    assert any("compiles this model anew" in note for note in data["notes"])
    assert sum(any(is_compiled for _, is_compiled in ways) for ways in worker.repeated) == 1


def test_compiled_finalists_that_fail_in_the_end_are_judged_in_eager_mode(tmp_path: Path) -> None:
    class Crashing(Compiler):
        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            has_compiled = any(("plan", True) in ways for ways in self.repeated)
            if name == "repeat" and has_compiled and not all(each.eager for each in arguments[0]):
                raise TrialError("the worker process died (signal 11)", worker_lost=True)
            return super().request(name, *arguments, timeout=timeout)

    _, verdict, data = decided(tmp_path, Crashing(recipes=0.6, plans=0.5))
    assert (verdict.kind, data["repeated"]) == ("plan", True)
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("eager", True)
    assert any("since compiled they failed" in note for note in data["notes"])


def test_another_recipe_that_cannot_be_compiled_takes_nothing_from_the_best_one_and_the_plan(tmp_path: Path) -> None:
    _, verdict, data = decided(tmp_path, Compiler(recipes=0.6, plans=0.5, fails="fp32"))
    assert (verdict.kind, data["compiled"]) == ("plan", "whole")
    assert any(note.endswith("(fp32 cannot be compiled): fp32") for note in data["notes"])


def test_a_plan_in_eager_mode_has_what_its_trial_had(tmp_path: Path) -> None:
    """A loss that the model makes is compiled beside parts alone."""
    worker = Compiler(recipes=0.95, plans=1.5)
    parts = dataclasses.replace(DEAR, paths=("block.0.fc",), makes_loss=True)
    _, verdict, data = decided(tmp_path, worker, parts=parts)
    assert (verdict.kind, data["compiled"]) == ("plan", "eager")
    plans = [candidate for candidate in worker.candidates if candidate.plan]
    assert {(each.in_parts, each.compiles_loss) for each in plans if each.eager} == {(False, False)}
    assert (True, True) in {(each.in_parts, each.compiles_loss) for each in plans if not each.eager}


def test_what_takes_more_memory_than_it_may_once_it_is_compiled_stays_in_eager_mode(tmp_path: Path) -> None:
    worker = Compiler(recipes=0.6, plans=0.5)
    worker.memory, worker.compiled_memory = lambda _candidate: 5, 9
    _, verdict, data = decided(tmp_path, worker, max_memory=7)
    assert verdict.kind == "plan"
    assert (data["compiled"], data["repeats"]["stock_in_eager"]) == ("eager", True)
    assert data["best"]["memory_bytes"] == 5


def test_compiling_takes_no_rounds_from_the_judged_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time limit; it took far longer than the repeats may, so that two rounds were left."""
    worker = Compiler(recipes=0.95, plans=0.9)
    worker.compiling = 500.0
    monkeypatch.setattr(finaltime, "time", SimpleNamespace(monotonic=lambda: worker.now))
    decided(tmp_path, worker)
    pair = worker.repeated.index([("autocast-bf16", True), ("plan", True)])
    assert worker.rounds[pair] == MAX_ROUNDS


def test_each_model_to_compile_may_take_as_long_as_a_trial(tmp_path: Path) -> None:
    worker = Compiler()
    search, *_ = decided(tmp_path, worker)
    ways = next(index for index, ways in enumerate(worker.repeated) if ("plan", True) in ways)
    assert worker.timeouts[ways] == 3 * search.options.trial_timeout


def test_what_python_launches_in_eager_mode_says_nothing_of_a_compiled_step(tmp_path: Path) -> None:
    class Launching(Compiler):
        def trial(self, candidate: Candidate) -> Measured:
            found = super().trial(candidate)
            assert found.step is not None
            return dataclasses.replace(found, step=dataclasses.replace(found.step, launch_ms=found.step.median))

    for times, expected in ((0.5, False), (2.0, True)):
        folder = tmp_path / str(times)
        folder.mkdir()
        _, _, data = decided(folder, Launching(recipes=times, plans=times))
        assert data["launch_bound"] is expected
        assert (data["launch_ms"] is not None) is expected


@pytest.mark.parametrize(("times", "way"), [(0.5, "whole"), (2.0, "eager")])
def test_without_a_plan_the_recipes_are_measured_compiled_too(tmp_path: Path, times: float, way: str) -> None:
    """None was compiled, though that is what was asked for, and the recipe was the best one in eager mode."""
    worker = Compiler(recipes=times)
    _, verdict, data = decided(tmp_path, worker, budget=2)
    assert verdict.kind == "stock"
    assert (data["compiled"], data["repeated"]) == (way, True)
    assert {("autocast-bf16", False), ("autocast-bf16", True), ("fp32", True)} <= {*worker.repeated[0]}
    assert verdict.step.median == pytest.approx(min(times, 1.0) * verdict.stock.outcome.ranked_ms)


def test_without_a_plan_the_next_recipe_may_be_the_fastest_once_it_is_compiled(tmp_path: Path) -> None:
    class Unlike(Compiler):
        def _step(self, candidate: Candidate, name: str, is_compiled: bool) -> StepTime:
            self.recipes = 0.4 if name == "fp32" else 0.9
            return super()._step(candidate, name, is_compiled)

    _, verdict, data = decided(tmp_path, Unlike(), budget=2)
    assert (data["best"]["recipe"], data["compiled"]) == ("fp32", "whole")
    assert data["repeats"]["stock"]["recipe"] == "fp32"
    assert verdict.step.median == pytest.approx(0.4 * verdict.stock.outcome.ranked_ms)


@pytest.mark.parametrize(("fails", "timeout"), [("autocast-bf16", None), ("endless", None), ("", 10.0)])
def test_without_a_plan_recipes_that_cannot_be_compiled_stand_by_their_trial(
    tmp_path: Path, fails: str, timeout: float | None
) -> None:
    _, verdict, data = decided(tmp_path, Compiler(fails=fails), budget=2, timeout=timeout)
    assert (verdict.kind, data["compiled"], data["repeated"]) == ("stock", "eager", False)
    assert any("the best stock recipe stands by its trial in eager mode" in note for note in data["notes"])


# --- which models these are ------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_a_model_whose_blocks_are_hardly_alike_is_compiled_whole_and_dear() -> None:
    widths = range(1, 18)
    net = nn.Sequential(*(Block(width, width + 1) for width in widths))
    assert parts_to_compile(net, "blocks") == [net], "34 layers either way"
    assert is_dear(net)
    alike = nn.Sequential(*(Block(8, 8) for _ in widths))
    assert len(parts_to_compile(alike, "blocks")) == len(widths)
    assert not is_dear(alike)
    few = nn.Sequential(Block(1, 2), Block(2, 3))
    assert len(parts_to_compile(few, "blocks")) == 2
    assert not is_dear(few)


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, width) for _ in range(4))


def test_of_stages_with_sizes_of_their_own_the_blocks_are_what_repeats() -> None:
    net = nn.ModuleList(Stage(width) for width in (4, 8, 16))
    assert [type(block) for block in repeated_blocks(net)] == [Block] * 12
    same = nn.ModuleList(Stage(4) for _ in range(3))
    assert [type(block) for block in repeated_blocks(same)] == [Stage] * 3


# --- the worker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(compilation, "DEAR", 2)
    path = tmp_path / "net.py"
    path.write_text(COMPILED)
    forget_compiled()
    options = TuneOptions(TargetSpec(str(path)), tmp_path / "out", steps=2, compile_with="aot_eager")
    yield Worker(Job(options, None, {}, (), threads=1), lambda *_: None)
    forget_compiled()


def test_trials_compile_nothing_and_repeats_what_is_not_for_eager_mode(worker: Worker) -> None:
    assert worker.parts().in_eager
    plan = plan_candidate(Plan())
    torch._dynamo.utils.counters.clear()
    assert worker.trial(plan, None).step is not None
    worker.repeat([plan.in_eager(), Candidate("fp32", eager=True)], 1)
    assert num_graphs() == 0
    worker.repeat([plan.in_eager(), plan], 1)
    assert num_graphs() == 1, "the plan's model as a whole"


def test_a_compiled_loss_beside_a_recipe_has_the_backend_that_was_asked_for(worker: Worker) -> None:
    assert worker.bench.compilation is None
    assert worker.trial(Candidate("fp32", loss_compile=True), None).step is not None
    assert {backend for _, backend in worker.bench._targets} == {"aot_eager"}


def test_a_model_is_compiled_for_sizes_that_change_as_its_user_has_it(worker: Worker) -> None:
    """Losses, which are compiled beside trials in eager mode, have code for each size."""
    batches = [(torch.randn(size, 16), torch.arange(size) % 5) for size in (6, 7, 8, 9)]
    worker.prepare()
    torch._dynamo.utils.counters.clear()
    with whole(worker.bench, "aot_eager"), training(worker.bench, Candidate("fp32")) as run:
        for batch in batches:
            run.step(batch)
    assert num_graphs() == 2, "the first size, and all others"


def test_in_eager_mode_parts_are_not_compiled_either(worker: Worker) -> None:
    in_parts = plan_candidate(Parts(("head",), "aot_eager").of(Plan()))
    torch._dynamo.utils.counters.clear()
    with training(worker.bench, in_parts.in_eager()) as run:
        run.step(worker.batches.train[0])
    assert num_graphs() == 0


def test_bench_has_a_row_of_its_own_for_a_plan_that_is_for_eager_mode(worker: Worker) -> None:
    plan = Plan(measured_on={"mode": "eager"})
    rows = rows_of(plan, worker.options)
    assert {name: candidate.eager for name, (_, candidate) in rows.items()} == {"plan": False, "plan+eager": True}
    assert list(rows_of(plan, dataclasses.replace(worker.options, compile_with=None))) == ["plan"]
    assert list(rows_of(Plan(measured_on={"mode": "compile"}), worker.options)) == ["plan"]
