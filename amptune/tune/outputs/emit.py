"""Writes the output folder: plan, scaler, patched model, diff, report and result, each file in one step.

The patched model is run and compared with the measured plan before anything of this run replaces an earlier one's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amptune.capture import Capture, Target
from amptune.core.files import write_all_atomic
from amptune.core.plan import Plan
from amptune.core.scaler import GradientRecord, scaler_json
from amptune.core.tables import CostTable
from amptune.errors import InputError
from amptune.patch.output import patched_files
from amptune.patch.spec import PatchSpec
from amptune.patch.wrapper import wrapper_files
from amptune.report.tune_html import tune_report
from amptune.tune.finalists.finals import Verdict
from amptune.tune.outputs.result import TOOL
from amptune.tune.running.recipes import Candidate, plan_candidate

CHECKING = ".amptune-check-"
GO_ON = "free space, and go on with --resume: the trials are kept"


@dataclasses.dataclass(frozen=True)
class Emission:
    """Everything that the output is made from."""

    out: Path
    target: Target
    captured: Capture
    spec: PatchSpec
    plan: Plan
    record: GradientRecord
    costs: CostTable
    verdict: Verdict
    data: dict[str, Any]


def emit(emission: Emission, check: Callable[[Path, Candidate], None]) -> dict[str, Path]:
    """Write all files; returns what each is -> its path.

    Args:
        emission: what to write.
        check: called with the patched file and the plan's candidate; raises when they differ.
    """
    texts: dict[str, str | bytes] = dict(_texts(emission))
    names = {"plan": "plan.json", "scaler": "scaler.json", "result": "result.json", "report": "report.html"}
    patched = _patched(emission)
    for name in patched:
        if name.endswith("_amptuned.py"):
            names["patched"] = name
        elif name.endswith(".patch"):
            names["patch"] = name
    _check_beforehand(emission, patched, names["patched"], check)
    texts |= patched
    write_all_atomic({emission.out / name: content for name, content in texts.items()}, GO_ON)
    return {what: emission.out / name for what, name in names.items()}


def _patched(emission: Emission) -> dict[str, bytes]:
    """The patched file, or for a model from a package a file of its own, with the runtime."""
    path = emission.target.path
    if path is None:
        return wrapper_files(emission.target.spec.text, emission.plan, emission.spec)
    return patched_files(path, emission.plan, emission.spec)


def _texts(emission: Emission) -> dict[str, str]:
    plan, record = emission.plan, emission.record
    scaler = scaler_json(plan.scaler, record)
    return {
        "plan.json": plan_text(plan),
        "scaler.json": _json(scaler),
        "result.json": _json(emission.data),
        "report.html": tune_report(
            emission.data, plan, emission.captured.graph, scaler=scaler, record=record, costs=emission.costs
        ),
    }


def plan_text(plan: Plan) -> str:
    """The content of plan.json."""
    return _json(plan.to_json(TOOL))


def _check_beforehand(
    emission: Emission, files: dict[str, bytes], patched: str, check: Callable[[Path, Candidate], None]
) -> None:
    """Run the patched model from a folder of its own, as if it lay beside the user's file.

    Those of runs that were killed meanwhile go: the output folder is this process's alone.

    Raises:
        InputError: the disk is full.
    """
    current = emission.out
    for left in emission.out.glob(f"{CHECKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=emission.out, prefix=CHECKING) as folder:
            for name, content in files.items():
                current = emission.out / name
                (Path(folder) / name).write_bytes(content)
            check(Path(folder) / patched, plan_candidate(emission.plan))
            shutil.rmtree(Path(folder) / "__pycache__", ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {current}: {error.strerror or error}", hint=GO_ON) from error


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
