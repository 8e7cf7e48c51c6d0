"""From two files, or a file and a plan, to a verification."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from amptune.apply.handoff import patched_spec
from amptune.apply.patching import apply_plan_file
from amptune.capture import Target, TargetSpec, load_target
from amptune.core.plan import ScalerConfig
from amptune.core.planfile import read_plan
from amptune.errors import WorkError
from amptune.tune.running.device import Device
from amptune.tune.running.training import seed_everything
from amptune.verify.result import Verification
from amptune.verify.runs import train_side_by_side

PREFIX = "amptune-verify-"
"""Of folders in the one for temporary files; the process's number follows."""
OLD_SECONDS = 24 * 3600.0
SINGLE_BATCH = "one batch, used again and again (there is no train_batches()): a gap on it says little of training"


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """What to run.

    Attributes:
        steps: most training steps.
        minutes: most minutes; None for no limit.
        seed: of weights and of what a step draws.
        tolerance: relative gap that is allowed in any case.
    """

    steps: int
    minutes: float | None
    seed: int
    tolerance: float


def verify(
    spec: TargetSpec, patched: Path | None, plan: Path | None, device: Device, options: VerifyOptions,
    say: Callable[[str], None], report: Callable[[int], None] = lambda step: None,
) -> Verification:  # fmt: skip
    """Train ``spec`` against a patched file, or against itself under a plan.

    Raises:
        InputError: a file cannot be read, or the plan does not fit.
        WorkError: a model does not train.
    """
    seed_everything(options.seed)  # for what a file draws when it is loaded, and the patched one after it
    original = load_target(spec)
    with _subject(spec, original, patched, plan, options.seed, say) as (target, scaler, name):
        runs, evaluations = train_side_by_side(
            original, target, device, steps=options.steps, minutes=options.minutes, seed=options.seed,
            tolerance=options.tolerance, scaler=scaler, report=report,
        )  # fmt: skip
    notes = (*original.notes, *((SINGLE_BATCH,) if original.train_batches is None else ()))
    return Verification(spec.text, name, runs, evaluations, device.describe(), notes)


@contextlib.contextmanager
def _subject(
    spec: TargetSpec, original: Target, patched: Path | None, plan: Path | None, seed: int, say: Callable[[str], None]
) -> Iterator[tuple[Target, ScalerConfig | None, str]]:
    """The patched target, its scaler and what to call it."""
    if patched is not None:
        seed_everything(seed)
        yield load_target(patched_spec(original, patched)), _scaler_beside(patched), str(patched)
        return
    assert plan is not None
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        files = apply_plan_file(plan, spec, Path(folder), say)
        path = next(path for name, path in files.items() if name.endswith("_amptuned.py"))
        seed_everything(seed)
        name = f"{spec.text} under {plan}"
        try:
            yield load_target(patched_spec(original, path)), read_plan(plan).scaler, name
        except WorkError as error:  # of a file that is gone by then
            rest = error.message.removeprefix(str(path))
            told = error.message if rest == error.message else f"{name}{rest}"
            look = f"amptune apply {plan} {spec.text} writes {path.name}, to look at"
            raise WorkError(told.replace(f"{folder}/", ""), hint=error.hint or look) from error


def _sweep(temporary: Path) -> None:
    """Remove the folders of runs that were killed: those of the last day may be of a process in another container."""
    for path in temporary.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError, OverflowError):
            is_old = time.time() - path.lstat().st_mtime > OLD_SECONDS
            if is_old and pid.isdigit() and path.is_dir() and not _is_alive(int(pid)):
                shutil.rmtree(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _scaler_beside(patched: Path) -> ScalerConfig | None:
    """The loss scaler that tune wrote beside a patched file, if any."""
    path = patched.parent / "scaler.json"
    try:
        return ScalerConfig(**json.loads(path.read_bytes())["gradscaler"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"cannot read {path}: {error}", hint="it is what amptune tune writes; or remove it") from error
