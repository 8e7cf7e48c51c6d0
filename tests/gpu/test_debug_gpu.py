"""``debug`` with real kernels: CUDA autocast, its own lists, and backward nodes that run on another thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec
from amptune.debug.result import DebugResult, location_of
from amptune.debug.run import debug
from amptune.debug.session import DebugOptions
from amptune.tune.running.device import Device

from ..debug.conftest import line_of, part
from ..debug.test_defects import CUSTOM

pytestmark = pytest.mark.gpu

DEFECTS = {
    "logits": ("q = x * 300\ns = q @ q.t()  # BAD\ny = torch.softmax(s / 32, -1) @ x", "matmul", "forward"),
    "eps": ("x = x * 0\ny = x / (x.abs().mean(-1, keepdim=True) + 1e-8)  # BAD", "div", "forward"),
    "custom backward": ("y = Scale.apply(x)", "mul", "backward"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)

    def run_source(source: str, dtype: str, steps: int = 4) -> DebugResult:
        (tmp_path / "model.py").write_text(source)
        options = DebugOptions(dtype, dtype == "fp16", steps)  # type: ignore[arg-type]
        return debug(TargetSpec("model.py"), Device("cuda"), options)

    return run_source


@pytest.mark.parametrize("name", DEFECTS)
def test_the_line_is_named_on_the_device(name: str, run) -> None:  # type: ignore[no-untyped-def]
    body, op, phase = DEFECTS[name]
    source = part(body, CUSTOM)
    finding = run(source, "fp16").findings[0]
    place = location_of(finding.culprit.op)
    assert place is not None
    marked = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# BAD")]
    assert place.line == (line_of(source) if phase == "backward" else marked[-1])
    assert (finding.culprit.op.op, finding.culprit.op.phase) == (op, phase)
    assert finding.cures


def test_what_autocast_keeps_in_fp32_here_is_no_defect(run) -> None:  # type: ignore[no-untyped-def]
    """exp and sum run in FP32 under CUDA's autocast, unlike under a CPU's."""
    assert run(part("e = torch.exp(x * 20)\ny = e / e.sum(-1, keepdim=True)"), "fp16").verdict == "clean"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
def test_a_clean_run(dtype: str, run) -> None:  # type: ignore[no-untyped-def]
    result = run(part("y = torch.tanh(x)"), dtype)
    assert (result.verdict, result.steps) == ("clean", 4)
    assert not any("rounded" in note for note in result.notes)
