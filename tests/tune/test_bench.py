from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.cli import run
from amptune.commands.bench import table
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.errors import TuneError
from amptune.tune.bench import extras, far_off, in_turns, measured_rows
from amptune.tune.quality.quality import Quality
from amptune.tune.running.kernels import uses_tensor_cores
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.study.progress import Progress
from amptune.tune.workers.job import Job, Measured
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.process import TrialError, WorkerProcess

from .conftest import MLP


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NTN", True),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off", True),
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_nt", True),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x64_stage3", True),
        ("cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align4", True),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", True),
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", True),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x128x8_stage3_ffma", False),
        ("cutlass_80_simt_sgemm_128x256_8x4_nn_align1", False),
        ("ampere_sgemm_128x64_nn", False),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::gelu>", False),
        ("void multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor<float, 4>>", False),
        ("void at::native::layer_norm_grad_input_kernel_vectorized<float, float>", False),
        ("triton_poi_fused_gelu_16_bf16_1024", False),
    ],
)
def test_tensor_core_kernels_are_told_by_name(kernel: str, expected: bool) -> None:
    assert uses_tensor_cores(kernel) is expected


def test_extras_add_the_loss_and_the_layout_to_autocast(model_file: Path) -> None:
    graph = capture(load_target(TargetSpec(str(model_file)))).graph
    recipes = [Candidate("fp32"), Candidate("autocast-bf16", autocast=Format.BF16)]
    found = {candidate.name: candidate for candidate in extras(recipes, graph, compile_loss=True)}
    assert set(found) == {
        "autocast-bf16+compiled-loss", "autocast-bf16+aligned", "autocast-bf16+compiled-loss+aligned",
    }  # fmt: skip
    aligned = found["autocast-bf16+aligned"]
    assert aligned.plan is not None
    assert dict(aligned.plan.sites) == {"fc2": aligned.plan.sites["fc2"]}, "13 outputs are off, 32 are not"
    assert not found["autocast-bf16+compiled-loss"].plan
    assert [c.name for c in extras(recipes, graph, compile_loss=False)] == ["autocast-bf16+aligned"]


def test_a_layer_that_is_aligned_by_itself_takes_what_a_padded_one_gives_under_autocast(tmp_path: Path) -> None:
    model = tmp_path / "net.py"
    model.write_text(MLP.replace("nn.Linear(16, 32)", "nn.Linear(16, 30)").replace("(32, 13)", "(30, 16)"))
    spec = TargetSpec(str(model))
    (aligned,) = extras(
        [Candidate("autocast-bf16", autocast=Format.BF16)], capture(load_target(spec)).graph, compile_loss=False
    )
    assert aligned.plan is not None
    assert set(aligned.plan.sites) == {"fc1"}
    job = Job(TuneOptions(spec, tmp_path / "out", steps=2, tolerance=0.5), None, {}, (), threads=1)
    with WorkerProcess(job, lambda *_: None) as worker:
        measured = worker.request("trial", aligned, None, timeout=120)
    assert measured.mismatches == ()
    assert measured.step is not None


def test_the_command_measures_every_recipe_and_the_plan(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    header = {"version": 1, "tool": "t", "model": {"target": "", "source_sha256": "", "fingerprint": ""}}
    rest = {"measured_on": {}, "flags": {"tf32": False, "channels_last": False},
            "loss": {"format": "fp32", "compile": False}, "output_format": None,
            "scaler": {"enabled": False, "init_scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5,
                       "growth_interval": 2000}}  # fmt: skip
    sites = {name: {"format": "bf16"} for name in ("embed", "norm", "fc1", "fc2")}
    plan.write_text(json.dumps({**header, **rest, "sites": sites}))
    out = tmp_path / "bench.json"
    command = ["bench", str(model_file), "--plan", str(plan), "--rounds", "2", "--steps", "3", "--device", "cpu",
               "--tolerance", "0.5", "--out", str(out)]  # fmt: skip
    assert run(command) == 0
    data = json.loads(out.read_text())
    rows = {row["recipe"]: row for row in data["rows"]}
    assert {"fp32", "autocast-bf16", "autocast-bf16+aligned", "plan"} <= set(rows)
    assert rows["plan"]["kind"] == "plan"
    assert rows["plan"]["valid"], rows["plan"]["reason"]
    assert len(rows["fp32"]["round_medians_ms"]) == 2
    assert rows[data["best_stock"]]["speedup_over_best_stock"] == 1.0
    assert data["best_stock"] in {"fp32", "autocast-bf16", "autocast-fp16"}
    printed = capsys.readouterr().out
    assert f"{data['best_stock']} *" in printed
    assert "mode, 2 rounds\n" in printed
    assert "mode, 1 round\n" in table({**data, "rounds": 1})


def test_a_row_that_takes_far_longer_than_the_best_is_given_up(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In FP16 a step took 2.8 s on a CPU, and 0.3 in FP32: its trial and its rounds took minutes."""
    monkeypatch.setattr("amptune.tune.bench.HOPELESS", 0.0)
    monkeypatch.setattr("amptune.tune.bench.GIVE_UP_MS", -1e9)
    out = tmp_path / "bench.json"
    command = ["bench", str(model_file), "--rounds", "1", "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert run(command) == 0
    rows = {row["recipe"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["fp32"]["valid"]
    assert rows["autocast-bf16"]["reason"].startswith("a step takes over")
    assert not rows["autocast-bf16"]["round_medians_ms"]


def test_a_plan_for_another_model_is_refused(
    model_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"version": 99}')
    assert run(["bench", str(model_file), "--plan", str(plan), "--device", "cpu"]) == 2
    assert "newer" in capfd.readouterr().err


class Rounds:
    """A worker whose rounds fail wherever ``fails`` is in them."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.asked: list[tuple[list[str], int]] = []

    def request(self, _name: str, candidates: list[Candidate], rounds: int, *, timeout: float) -> Any:
        names = [candidate.name for candidate in candidates]
        self.asked.append((names, rounds))
        if self.fails in names:
            raise TrialError(f"{self.fails} cannot be compiled")
        return [[StepTime.of([1.0])] * rounds for _ in candidates]


def test_a_row_that_only_rounds_compile_and_cannot_leaves_the_others(tmp_path: Path) -> None:
    worker, failed = Rounds(fails="plan"), dict[str, str]()
    rows = {name: Candidate(name) for name in ("fp32", "plan", "autocast-bf16")}
    times = in_turns(worker, rows, 4, failed, Progress(1))  # type: ignore[arg-type]
    assert list(rows) == ["fp32", "autocast-bf16"]
    assert [len(each) for each in times] == [4, 4]
    assert failed == {"plan": "plan cannot be compiled"}
    assert worker.asked[-1] == (["fp32", "autocast-bf16"], 4)
    with pytest.raises(TuneError, match="no row could be measured"):
        in_turns(Rounds(fails="fp32"), {"fp32": Candidate("fp32")}, 4, {}, Progress(1))  # type: ignore[arg-type]


def test_variants_of_a_recipe_that_is_far_off_are_left_out() -> None:
    measured = {
        name: Measured(StepTime.of([ms] * 3), None, None)
        for name, ms in {"fp32": 300.0, "a": 100.0, "b": 199.0, "c": 201.0}.items()
    }
    assert far_off("b+compiled-loss", measured) == ""
    assert far_off("c+compiled-loss", measured) == "not measured: c takes 2.0 times the best recipe's step"
    assert far_off("d+aligned", measured) == "d did not run"
    measured["d"] = Measured(None, None, None)
    assert far_off("d+aligned", measured) == "not measured, as d: a step takes over 10x the best so far"


class Refusing:
    """A worker whose plan has wrong gradients before it is compiled, as one in FP8 may have."""

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            is_fp32 = arguments[0] == Candidate("fp32")
            gap, reason = (0.0, "") if is_fp32 else (math.inf, "the gradient of fc1 is wrong")
            quality = Quality(gap, gap, 0.005, None, 0, 2, reason)
            return Measured(StepTime.of([10.0] * 3) if is_fp32 else None, None, quality)
        return [[StepTime.of([10.0] * 3)]] if name == "repeat" else [None]


def test_a_plan_that_is_refused_before_it_is_compiled_is_said_to_be(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was told to be too slow, with a loss gap that is no JSON."""
    options = TuneOptions(TargetSpec("net.py"), tmp_path, compile_with="aot_eager")
    rows = {"fp32": ("stock", Candidate("fp32")), "plan": ("plan", plan_candidate(Plan({})))}
    _, row = measured_rows(Refusing(), rows, 1, "measuring", options, Progress(1))  # type: ignore[arg-type]
    assert (row.reason, row.loss_gap, row.valid) == ("the gradient of fc1 is wrong", None, False)
    said = capfd.readouterr().err
    assert "plan: not valid: the gradient of fc1 is wrong; by its gradients in eager mode: not compiled" in said
