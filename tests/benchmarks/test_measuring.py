"""The scripts that measure on a GPU, on the CPU with tiny models: what they write has the form that readers expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.core.hardware import GPUS
from tests.benchmarks import device_times, estimate_check, first_sight, kernel_cases, kernel_times, step_times

TINY = """
import torch
import torch.nn.functional as F
from torch import nn


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def make_batch():
    return torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
"""


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_times, "DEVICE", "cpu")
    monkeypatch.setattr(step_times, "MODELS", tmp_path)
    monkeypatch.setattr(step_times, "SECONDS", 0.01)
    (tmp_path / "tiny.py").write_text(TINY, encoding="utf-8")


def test_steps_of_every_recipe_and_of_the_repaired_model() -> None:
    rows = list(step_times.measure(step_times.Entry("tiny", channels_last=True), step_times.Wanted()))
    assert [row["recipe"] for row in rows] == [*step_times.MEASURED, "autocast-bf16+fixed"]
    assert all(row["step_ms"]["low"] <= row["step_ms"]["median"] <= row["step_ms"]["high"] for row in rows)
    assert not torch.backends.cuda.matmul.allow_tf32  # amptune: ignore[AMP404] the flag that steps set


def test_ops_and_launches_alone() -> None:
    wanted = step_times.Wanted(ops=True, launches=True, steps=False)
    rows = list(step_times.measure(step_times.Entry("tiny"), wanted))
    assert [row["recipe"] for row in rows] == list(step_times.TAKEN_APART)
    for row in rows:
        assert "step_ms" not in row
        assert row["few_samples_ms"]["median"] > 0
        shapes = {name: shapes for name, shapes, *_ in row["ops"]["rows"] if "convolution_backward" in name}
        assert any("8x8x6x6 8x3x8x8 8x3x3x3" in each for each in shapes.values())
        assert row["ops"]["total_us"] >= row["ops"]["rest_us"]


def test_each_case_of_kernels_has_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_times, "SIZES", (2**18,))
    monkeypatch.setattr(
        kernel_times, "FORMATS", {name: kernel_times.FORMATS[name] for name in ("fp32", "bf16", "fp16")}
    )
    monkeypatch.setattr(kernel_times, "moves", lambda: iter(()))
    monkeypatch.setattr(kernel_times, "GEMMS", ((16, 32, 8, 1), (16, 16, 8, 4)))
    monkeypatch.setattr(kernel_times, "CONVOLUTIONS", ((2, 8, 3, 8, 3, 1, 1), (2, 8, 8, 8, 3, 1, 8)))
    monkeypatch.setattr(kernel_times, "ATTENTIONS", ((2, 2, 16, 16, 8, "causal"), (2, 2, 16, 16, 8, "masked")))
    monkeypatch.setattr(kernel_times, "RECURRENT", (("gru", 2, 4, 8),))
    rows = kernel_times.timed(60)
    passes = {"gemm": {"forward", "input", "weight"}, "conv": {"forward", "input", "weight"},
              "attention": {"forward", "backward"}, "rnn": {"forward", "both"}}  # fmt: skip
    assert {row["case"] for row in rows} == set(passes)
    for row in rows:
        assert set(row["us"]) == passes[row["case"]], row
        assert min(row["us"].values()) > 0


def test_each_further_case_has_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = (1, (8, 8), 4, 8, (3, 3), 1, 2, 1)
    monkeypatch.setattr(kernel_cases, "CONVOLUTIONS", (one, (1, (16,), 8, 8, (2,), 1, 1, 8)))
    monkeypatch.setattr(kernel_cases, "TRANSPOSED", ((1, (8, 8), 4, 8, (2, 2), 2, 1, 1),))
    monkeypatch.setattr(kernel_cases, "GEMMS", ((16, 32, 8, 1),))
    monkeypatch.setattr(kernel_cases, "ATTENTIONS", ((2, 2, 16, 16, 8, "causal"),))
    monkeypatch.setattr(kernel_cases, "SIZES", (2**18,))
    monkeypatch.setattr(kernel_cases, "BATCH_NORMS", (16,))
    ran: list[object] = []

    def once(run: Callable[[], object], *, capture: bool) -> float:
        ran.append(run())
        return 1.0

    monkeypatch.setattr(device_times, "microseconds", once)
    rows = kernel_times.timed(60, more=True)
    assert len(ran) == sum(len(row["us"]) for row in rows)
    passes = {"gemm": {"forward", "input", "weight"}, "conv": {"forward", "input", "weight"},
              "attention": {"forward", "backward"}, "op": {"forward", "both"}}  # fmt: skip
    assert {row["case"] for row in rows} == set(passes)
    for row in rows:
        assert set(row["us"]) == passes[row["case"]], row


def test_memory_bound_kernels_run_in_every_format() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2**18).to(dtype)
        for group in (
            kernel_times._pointwise(x, dtype),
            kernel_times._moves(x, dtype),
            kernel_times._norms(x, dtype),
        ):
            for _, passes in group:
                for run in passes.values():
                    run()


def test_predictions_that_were_written_down_stay_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "predicted.json"
    estimate_check.note(file, {"name": "a GPU"}, "first", {"tiny": {"table": {"fp32": {"ms": 1.0}}}})
    estimate_check.note(file, {"name": "a GPU"}, "after", {"tiny": {"table": {"fp32": {"ms": 2.0}}}})
    with pytest.raises(SystemExit, match="tiny predicted as 'first' already"):
        estimate_check.note(file, {"name": "a GPU"}, "first", {"tiny": {"table": {"fp32": {"ms": 3.0}}}})
    found = json.loads(file.read_text(encoding="utf-8"))["predicted"]
    assert found["first"]["tiny"]["table"]["fp32"]["ms"] == 1.0
    assert found["after"]["tiny"]["table"]["fp32"]["ms"] == 2.0


def test_predictions_are_compared_as_they_were_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def step(recipe: str, ms: float) -> dict[str, object]:
        quartiles = {"median": ms, "low": ms, "high": ms}
        return {"model": "mlp", "recipe": recipe, "mode": "eager", "step_ms": quartiles, "memory_bytes": 2**30}

    rows = [step("fp32", 40.0), step("tf32", 20.0), step("autocast-bf16", 10.0)]
    measured = {"gpu": {"name": "A GPU"}, "torch": "2", "transformers": "5", "rows": rows}
    predicted = {"fp32": 40.0, "tf32": 16.0, "autocast-bf16": 11.0}  # 2.5 and 3.64 times, measured 2 and 4 times
    table = {name: {"ms": ms, "bytes": 2**30, "bound": "gpu"} for name, ms in predicted.items()}
    (tmp_path / "steps.json").write_text(json.dumps(measured))
    (tmp_path / "predicted_x.json").write_text(json.dumps({"predicted": {"before": {"mlp": {"table": table}}}}))
    monkeypatch.setattr(first_sight, "REPORTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["first_sight.py", "x", "steps.json"])
    first_sight.main()
    text = (tmp_path / "first_sight_x.md").read_text()
    assert "| before | mlp | table | 2 | 17.0% |" in text  # of 25.0 % and 9.1 %
    assert "| mlp | tf32 | 20.00 | 16.00 | gpu | 2.00 | 2.50 | +25.0% | +0.0% |" in text


def test_a_set_of_unseen_models_is_measured_and_predicted_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entries = (step_times.Entry("old"), step_times.Entry("third", unseen=3), step_times.Entry("second", unseen=2))
    measured = {"gpu": {"key": "h200"}, "rows": []}
    monkeypatch.setattr(estimate_check, "ENTRIES", entries)
    monkeypatch.setattr(
        estimate_check, "measured_here", lambda chosen, *_, **__: measured | {"rows": [e.model for e in chosen]}
    )
    monkeypatch.setattr(estimate_check, "written_down", lambda _, chosen: {e.model: {"table": {}} for e in chosen})
    out = ["--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["estimate_check.py", "--unseen", "3", "--measure-only", *out])
    estimate_check.main()
    steps = tmp_path / "steps_unseen_3_h200.json"
    assert json.loads(steps.read_text(encoding="utf-8"))["rows"] == ["third"]
    noted = ["--measured", str(steps), "--write-down", str(tmp_path / "predicted.json"), "--when", "third set"]
    monkeypatch.setattr("sys.argv", ["estimate_check.py", "--unseen", "3", *noted, *out])
    estimate_check.main()
    found = json.loads((tmp_path / "predicted.json").read_text(encoding="utf-8"))["predicted"]
    assert found == {"third set": {"third": {"table": {}}}}


def test_a_run_goes_on_after_a_model_that_fails_and_where_it_was_broken_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Nothing:
        def to_json(self) -> dict[str, object]:
            return {}

    asked, kept = [], []

    def measure(entry: step_times.Entry, _: step_times.Wanted) -> Iterator[dict[str, Any]]:
        asked.append(entry.model)
        if entry.model == "broken":
            raise RuntimeError("no kernel for BFloat16")
        yield {"model": entry.model, "recipe": "fp32"}

    monkeypatch.setattr("amptune.analyze.device.present_gpu", lambda: GPUS["h200"])
    monkeypatch.setattr("amptune.analyze.calibration.calibrate.calibrate", lambda _: Nothing())
    monkeypatch.setattr(estimate_check, "measure", measure)
    monkeypatch.setattr(
        estimate_check, "ENTRIES", [step_times.Entry(name, unseen=4) for name in ("done", "broken", "left")]
    )
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"rows": [{"model": "done", "recipe": "fp32", "earlier": True}]}))
    monkeypatch.setattr(
        estimate_check, "write_atomic", lambda file, text: kept.append((file.name, json.loads(text)["rows"]))
    )
    command = ["estimate_check.py", "--unseen", "4", "--measure-only", "--resume", str(earlier), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    estimate_check.main()
    assert asked == ["broken", "left"]
    name, rows = kept[-1]
    assert name == "steps_unseen_4_h200.json"
    assert [row["model"] for row in rows] == ["done", "left"]
    assert rows[0]["earlier"]


def test_steps_of_several_runs_are_compared_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(model: str, recipe: str, error: float, constants: str = "table") -> dict[str, object]:
        """A model that the processor binds but in FP32, whose launches take four fifths of what was assumed."""
        base = recipe == "fp32"
        return {
            "model": model, "group": "seen", "constants": constants, "mode": "eager", "recipe": recipe,
            "gpu_ms": 20.0 if base else 1.0, "launch_ms": 6.25, "measured_ms": 20.0 if base else 5.0,
            "predicted_ms": 1.0 if base or model == "model0" else 0.5, "error": error,
            "measured_speedup": None if base else 4.0, "predicted_speedup": 2.0,
            "speedup_error": None if base else error, "measured_gib": 1.0, "predicted_gib": 1.0, "memory_error": 0.0,
        }  # fmt: skip

    files = []
    for number, errors in enumerate(([0.1, 0.2], [0.1, 0.6])):
        model = f"model{number}"
        rows = [row(model, recipe, each) for recipe, each in zip(("fp32", "tf32"), errors, strict=True)]
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"gpu": {"key": "none"}, "torch": "2", "rows": rows}))
    monkeypatch.setattr(estimate_check, "ENTRIES", (step_times.Entry("model0"), step_times.Entry("model1")))
    monkeypatch.setattr(estimate_check, "compare", lambda run, _: run["rows"])
    monkeypatch.setattr("sys.argv", ["x", "--measured", *map(str, files), "--out", str(tmp_path)])
    estimate_check.main()
    found = json.loads((tmp_path / "estimate_none.json").read_text())
    assert found["median"]["table"]["all"]["speedup_error"] == pytest.approx(0.4)
    assert found["mean"]["table"]["all"]["error"] == pytest.approx(0.25)
    assert found["leave_one_out"] == {"table": 0.0}
    chosen = found["choice"]["table"]
    assert (chosen["models"], chosen["behind"]) == (2, {"model0": 3.0})  # no faster by the prediction
    assert (chosen["named"], chosen["names"]) == (2, 3)  # but named beside it
    text = (tmp_path / "estimate_none.md").read_text()
    assert "All 2 models" in text
    assert "- table: within 3 % of the fastest in 1 of 2 models; in others, model0 300.0% behind" in text
    assert "| table | all | 4 | 15.0% | 25.0% | 40.0% | 40.0% | 0.0% | 0.0% |" in text


def test_how_often_what_is_named_as_the_fastest_is_nearly_that() -> None:
    """One model's recipes are far apart and rightly ranked; another's are wrongly ranked, and named together."""
    steps = {
        "clear": {"fp32": (10.0, 9.0, "gpu"), "autocast-bf16": (2.0, 2.1, "gpu")},
        "near": {"tf32": (4.0, 6.0, "launch"), "autocast-bf16": (4.4, 4.5, "launch")},
    }
    rows = [
        {"model": model, "constants": "table", "recipe": recipe, "predicted_ms": predicted, "measured_ms": measured,
         "bound": bound}
        for model, table in steps.items() for recipe, (predicted, measured, bound) in table.items()
    ]  # fmt: skip
    found = estimate_check.choices(rows)["table"]
    assert found == {"models": 2, "behind": {"near": 0.3333}, "named": 2, "names": 3, "alone": 1, "right": 1}
