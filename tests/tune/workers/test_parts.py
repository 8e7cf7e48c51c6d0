"""Compile mode: a plan may have its blocks compiled each by itself, where that is faster than the model as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.errors import TuneError
from amptune.patch.output import patched_files
from amptune.tune.finalists import finals, judging
from amptune.tune.finalists.finalist import Finalist
from amptune.tune.finalists.finals import Verdict, decide
from amptune.tune.finalists.judging import MAX_PAIRED_ROUNDS, Judged
from amptune.tune.outputs.result import result_json
from amptune.tune.running.compilation import forget_compiled
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.running.training import training
from amptune.tune.search import Search
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError
from amptune.tune.workers.worker import Worker
from tests.tune.test_search import FormulaWorker, make_search, step

MASKED = """
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 16)

    def forward(self, x, mask=None):
        x = x + self.fc(F.gelu(self.norm(x)))
        return x if mask is None else x * mask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        mask = torch.ones_like(x) if torch.compiler.is_compiling() else None
        masks.append(mask is None)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


masks = []


def make_model():
    return Net()


def make_batch():
    return torch.randn(8, 16), torch.arange(8) % 5


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
"""
PATHS = ("stem", "blocks.0", "blocks.1", "blocks.2", "head")
IN_BF16 = {site: SitePlan(Format.BF16) for site in ("stem", "head", *(f"blocks.{i}.{n}" for i in range(3) for n in ("norm", "fc")))}  # fmt: skip  # noqa: E501


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


Open = Callable[..., Worker]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def open_worker(text: str = MASKED, compile_with: str | None = "aot_eager") -> Worker:
        path = tmp_path / "net.py"
        path.write_text(text)
        options = TuneOptions(TargetSpec(str(path)), tmp_path / "out", steps=2, compile_with=compile_with)
        return Worker(Job(options, None, {}, (), threads=1), lambda *_: None)

    return open_worker


def test_parts_are_the_repeated_blocks_and_what_multiplies_beside_them(opened: Open) -> None:
    assert opened().parts() == Parts(PATHS, "aot_eager", makes_loss=False, num_layers=3)
    assert not opened(compile_with=None).parts(), "eager mode compiles nothing"
    without_blocks = MASKED.replace("range(3)", "range(1)")
    assert not opened(without_blocks).parts(), "trials compile it whole"


def test_around_parts_the_forward_is_not_traced(opened: Open) -> None:
    worker = opened()
    plan = Plan(IN_BF16)
    for chosen, graphs in ((worker.parts().of(plan), 3), (plan, 3)):
        forget_compiled()
        torch._dynamo.utils.counters.clear()
        with training(worker.bench, plan_candidate(chosen)) as run:
            run.step(worker.batches.train[0])
            run.step(worker.batches.train[0])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "one for the blocks, stem and head"
        assert all("_compiled_call_impl" not in vars(module) for module in worker.bench.model.modules())


def test_parts_are_eager_where_compile_mode_is_set_aside(opened: Open) -> None:
    worker = opened()
    candidate = plan_candidate(worker.parts().of(Plan(IN_BF16)))
    forget_compiled()
    torch._dynamo.utils.counters.clear()
    measured = worker.trial(candidate, None)
    assert measured.quality is not None
    assert not measured.mismatches
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3, "its steps alone are compiled"


def test_the_emitted_model_compiles_its_parts_itself(opened: Open, tmp_path: Path) -> None:
    worker = opened()
    path = tmp_path / "net.py"
    plan = worker.parts().of(Plan(IN_BF16))
    target = load_target(TargetSpec(str(path)))
    spec = worker.patch_spec(capture(target).graph)
    for name, content in patched_files(path, plan, spec).items():
        (tmp_path / name).write_bytes(content)
    patched = tmp_path / "net_amptuned.py"
    assert 'compile_parts=["stem", "blocks.*", "head"], backend="aot_eager"' in patched.read_text()
    assert worker.check_emitted(patched, plan_candidate(plan)) == []
    emitted = load_target(TargetSpec(str(patched)))
    model, batch = emitted.module.make_model(), emitted.make_batch()
    masks = emitted.module.masks
    for run in (model, torch.compile(model, backend="aot_eager")):
        forget_compiled()
        torch._dynamo.utils.counters.clear()
        masks.clear()
        loss = emitted.loss(run(batch[0]), batch)
        loss.backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
        assert masks == [True], "what is around the parts is run, not traced"


class Compiler(FormulaWorker):
    """Models that are compiled whole take so many times as long as in parts."""

    def __init__(self, whole: float) -> None:
        super().__init__()
        self.whole = whole
        self.repeated: list[list[tuple[str, bool]]] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            return self.trial(arguments[0])
        candidates, rounds, _, is_whole = arguments
        self.repeated.append([(candidate.name, candidate.in_parts) for candidate in candidates])
        longer = self.whole if is_whole else 1.0
        return [[step(self.milliseconds(c) * (1.0 if c.in_parts else longer))] * rounds for c in candidates]

    def milliseconds(self, candidate: Candidate) -> float:
        if candidate.plan is not None and not candidate.plan.sites:
            candidate = dataclasses.replace(candidate, plan=None)
        return super().milliseconds(candidate)


def decided(folder: Path, worker: Compiler, budget: int = 12, **options: Any) -> tuple[Search, Verdict]:
    search = make_search(folder, worker, budget)
    search.parts = Parts(("blocks.0", "blocks.1"))
    search.options = dataclasses.replace(search.options, compile_with="inductor", **options)
    search.run()
    return search, decide(search)


def test_parts_are_compiled_where_that_is_faster(tmp_path: Path) -> None:
    search, verdict = decided(tmp_path, Compiler(whole=1.4))
    assert verdict.kind == "plan"
    assert verdict.way == "parts"
    assert verdict.stock_in_parts == pytest.approx(1.4), "which a user can have by hand"
    data = result_json(search, verdict, 1.0, "plan.json")
    assert data["compiled"] == "parts"
    assert data["attribution"]["stock_in_parts"] == pytest.approx(1.4)
    trials = verdict.stock.outcome.ranked_ms / verdict.record.outcome.ranked_ms
    assert verdict.speedup == pytest.approx(1.4 * trials)
    assert verdict.formats_only == pytest.approx(trials)


@pytest.mark.parametrize(
    ("timeout", "stopped", "rounds", "option"),
    [
        (None, "budget", 6, "--budget"),
        (None, "no gain", 6, None),
        (60.0, "no gain", 6, "--timeout"),
        (60.0, "timeout", MAX_PAIRED_ROUNDS, None),
    ],
)
def test_what_leaves_time_for_more_rounds_of_a_plan_that_missed(
    tmp_path: Path, timeout: float | None, stopped: str, rounds: int, option: str | None
) -> None:
    """A larger --timeout was asked for where there was none, and a larger --budget where no trial was worth it."""
    search, verdict = decided(tmp_path, Compiler(whole=1.4), budget=3)
    search.stopped, search.options = stopped, dataclasses.replace(search.options, timeout=timeout)
    one = Finalist(verdict.stock, search.recipes["fp32"], verdict.way, [StepTime.of([2.0] * 3)] * rounds)
    missed = dataclasses.replace(verdict, missed=Judged(one, one, one.speedup_of(one)))
    assert result_json(search, missed, 1.0, "plan.json")["missed"]["more_rounds_by"] == option


def test_the_model_is_compiled_whole_where_that_is_faster(tmp_path: Path) -> None:
    worker = Compiler(whole=0.9)
    search, verdict = decided(tmp_path, worker)
    assert verdict.kind == "plan"
    assert verdict.way == "whole"
    assert ["plan", "plan"] in [[name for name, _ in names] for names in worker.repeated], "both were measured"
    assert result_json(search, verdict, 1.0, "plan.json")["compiled"] == "whole"


def test_a_recipe_in_parts_may_be_what_is_left(tmp_path: Path) -> None:
    """No plan is faster than the recipe is in parts, but that is faster than the recipe compiled whole."""
    search, verdict = decided(tmp_path, Compiler(whole=1.4), budget=2)
    assert verdict.kind == "plan"
    assert verdict.record.outcome.recipe == "autocast-bf16"
    assert verdict.way == "parts"
    assert (verdict.speedup, verdict.stock_in_parts, verdict.formats_only) == pytest.approx((1.4, 1.4, 1.0))
    assert result_json(search, verdict, 1.0, "plan.json")["verdict"] == "plan"
    other = tmp_path / "other"
    other.mkdir()
    assert decided(other, Compiler(whole=1.0), budget=2)[1].kind == "stock"


def test_a_recipe_that_was_measured_in_parts_ships_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no time to compile a model whole, its user would not get the step that was measured."""

    class Short(finals.FinalTime):
        def __init__(self, search: Search) -> None:
            super().__init__(search)
            self.is_limited = True

        def expected(self, *_: object) -> float:
            return 1e6

    monkeypatch.setattr(finals, "FinalTime", Short)
    worker = Compiler(whole=1.4)
    search, verdict = decided(tmp_path, worker, budget=2)
    assert verdict.kind == "stock"
    assert verdict.way == "parts"
    assert worker.repeated == [], "beside itself it has nothing to gain"
    assert result_json(search, verdict, 1.0, "plan.json")["compiled"] == "parts"
    other = tmp_path / "other"
    other.mkdir()
    plan = decided(other, Compiler(whole=1.4))[1]
    assert plan.kind == "plan"
    assert plan.stock_in_parts is None, "both were in parts"


class Hungry(Compiler):
    """Plans are slower than the recipe and take half of its memory, unless their model is compiled whole."""

    def __init__(self, slower: float, whole: float) -> None:
        super().__init__(whole)
        self.slower, self.fragile = slower, False
        self.memory = lambda candidate: 1000 if candidate.is_stock else 500

    def milliseconds(self, candidate: Candidate) -> float:
        has_formats = candidate.plan is not None and candidate.plan.sites
        return super().milliseconds(candidate) * (self.slower if has_formats else 1.0)

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        found = super().request(name, *arguments, timeout=timeout)
        if name != "repeat":
            return found
        memory = [500 if candidate.in_parts else 1000 for candidate in arguments[0]]
        return [
            [dataclasses.replace(time, memory=size) for time in times]
            for times, size in zip(found, memory, strict=True)
        ]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time to repeat all finalists."""
    monkeypatch.setattr(finals.FinalTime, "left", lambda _clock: 1e3)


@pytest.mark.usefixtures("patient")
def test_where_memory_counts_a_plan_that_saves_it_wins_in_parts(tmp_path: Path) -> None:
    """Its parts are what was measured, and no recipe takes its place because it is faster."""
    _, verdict = decided(tmp_path, Hungry(slower=1.3, whole=0.9), objective="memory")
    assert (verdict.kind, verdict.record.outcome.recipe, verdict.way) == ("plan", None, "parts")


@pytest.mark.usefixtures("patient")
def test_a_plan_that_takes_too_much_when_compiled_whole_stays_in_parts(tmp_path: Path) -> None:
    _, verdict = decided(tmp_path, Hungry(slower=0.7, whole=0.9))
    assert (verdict.kind, verdict.way) == ("plan", "whole")
    other = tmp_path / "other"
    other.mkdir()
    _, limited = decided(other, Hungry(slower=0.7, whole=0.9), max_memory=800)
    assert (limited.kind, limited.way) == ("plan", "parts")


def test_where_a_model_cannot_be_compiled_whole_its_parts_are_judged(tmp_path: Path) -> None:
    class Unable(Compiler):
        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            if name == "repeat" and arguments[3] and not all(candidate.in_parts for candidate in arguments[0]):
                raise TrialError("torch.compile compiles this model anew in each of its first 10 steps")
            return super().request(name, *arguments, timeout=timeout)

    search, verdict = decided(tmp_path, Unable(whole=1.4))
    assert (verdict.kind, verdict.way, verdict.repeated) == ("plan", "parts", True)
    assert verdict.stock_in_parts is None
    notes = result_json(search, verdict, 1.0, "plan.json")["notes"]
    assert any("compiled by their blocks, as in the trials: whole, torch.compile compiles this" in n for n in notes)


def test_where_neither_way_compiles_in_the_repeats_both_are_named(tmp_path: Path) -> None:
    """What stands is the recipe as its trial had it: by its blocks."""

    class Unable(Compiler):
        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            if name == "repeat":
                raise TrialError("compiles anew" if arguments[3] else "the worker process died (signal 9)")
            return super().request(name, *arguments, timeout=timeout)

    search, verdict = decided(tmp_path, Unable(whole=1.4))
    assert (verdict.kind, verdict.way, verdict.repeated) == ("stock", "parts", False)
    data = result_json(search, verdict, 1.0, "plan.json")
    assert data["compiled"] == "parts"
    (note,) = [note for note in data["notes"] if "repeats failed" in note]
    assert "whole, compiles anew; by their blocks, the worker process died (signal 9)" in note
    assert not any("are compiled by their blocks" in note for note in data["notes"])


def test_a_recipe_that_cannot_be_compiled_whole_stands_by_its_trial(tmp_path: Path) -> None:
    class Unable(Compiler):
        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            found = super().request(name, *arguments, timeout=timeout)
            if name == "repeat":
                raise TrialError("compiles anew")
            return found

    worker = Unable(whole=1.4)
    search, verdict = decided(tmp_path, worker, budget=2)
    assert (verdict.kind, verdict.way, verdict.repeated) == ("stock", "parts", False)
    assert len(worker.repeated) == 1
    notes = result_json(search, verdict, 1.0, "plan.json")["notes"]
    assert any("the repeats failed (compiles anew): the best stock recipe stands, by its trial" in n for n in notes)


def test_plans_that_are_slower_than_the_recipe_in_parts_are_not_compiled_whole(tmp_path: Path) -> None:
    """Trials compile the parts of both, so theirs compare: the plan would cost two compilers more for nothing."""
    worker = Hungry(slower=1.3, whole=1.4)
    _, verdict = decided(tmp_path, worker)
    assert verdict.record.outcome.recipe == "autocast-bf16"
    assert verdict.way == "parts"
    assert all(name != "plan" for names in worker.repeated for name, _ in names)


@pytest.mark.usefixtures("patient")
def test_memory_is_compared_as_the_repeats_compile_it(tmp_path: Path) -> None:
    """The recipe takes 1000 bytes with its blocks compiled alone, as in its trial, and 400 compiled whole."""

    class Leaner(Hungry):
        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            found = super().request(name, *arguments, timeout=timeout)
            if name != "repeat":
                return found
            memory = [500 if candidate.in_parts else 400 for candidate in arguments[0]]
            return [
                [dataclasses.replace(time, memory=size) for time in times]
                for times, size in zip(found, memory, strict=True)
            ]

    search, verdict = decided(tmp_path, Leaner(slower=1.3, whole=0.9), objective="memory")
    assert verdict.kind == "stock"
    assert result_json(search, verdict, 1.0, "plan.json")["best"]["memory_bytes"] == 400


ANEW = MASKED.replace("masks.append(mask is None)", "masks.append(mask is None)\n        self.calls = len(masks)")


def test_a_model_that_is_compiled_anew_in_every_step_is_no_endless_round(opened: Open) -> None:
    worker = opened(ANEW)
    recipe = Candidate("fp32")
    with pytest.raises(TuneError, match="compiles this model anew in each of its first 10 steps"):
        worker.repeat([recipe], 1)
    ((found,),) = worker.repeat([worker.parts().of_recipe(recipe)], 1)
    assert found.repeats


@pytest.mark.parametrize("slower", [2.0, 1.2])
def test_a_recipe_that_is_faster_in_parts_than_the_plan_is_handed_over(tmp_path: Path, slower: float) -> None:
    """A plan's trial may have had a better moment: the repeats show it to be slower than the recipe in parts, and
    faster than the recipe compiled whole, or not even that."""

    class Misled(Compiler):
        def milliseconds(self, candidate: Candidate) -> float:
            found = super().milliseconds(candidate)
            return found * slower if self.repeated and candidate.name == "plan" else found

    _, verdict = decided(tmp_path, Misled(whole=1.4))
    assert verdict.kind == "plan"
    assert verdict.record.outcome.recipe == "autocast-bf16"
    assert verdict.way == "parts"
    assert verdict.speedup == pytest.approx(1.4)
    assert verdict.formats_only == 1.0


@pytest.mark.usefixtures("patient")
def test_a_recipe_in_parts_is_judged_as_strictly_as_a_plan(tmp_path: Path) -> None:
    """Fourteen of forty rounds against it are too many for what each look at the rounds may err."""

    class Unsure(Compiler):
        rounds = 0

        def request(self, name: str, *arguments: Any, timeout: float) -> Any:
            found = super().request(name, *arguments, timeout=timeout)
            if name == "repeat" and any(candidate.in_parts for candidate in arguments[0]):
                for index in range(arguments[1]):
                    self.rounds += 1
                    longer = 1.1 if self.rounds % 20 in (1, 4, 7, 10, 13, 16, 19) else 1.0
                    for candidate, times in zip(arguments[0], found, strict=True):
                        times[index] = step(times[index].median * (longer if candidate.in_parts else 1.0))
            return found

    worker = Unsure(whole=1.05)
    _, verdict = decided(tmp_path, worker, budget=2)
    assert worker.rounds == judging.MAX_PAIRED_ROUNDS
    assert verdict.kind == "stock"
