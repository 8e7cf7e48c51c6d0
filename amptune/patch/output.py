"""The files that the user takes home: the patched model, the runtime beside it, and the diff."""

from __future__ import annotations

from pathlib import Path

from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.patch.block import RUNTIME
from amptune.patch.check import check_patched
from amptune.patch.diff import shown_in_diff, unified_diff
from amptune.patch.rewrite import patch_source
from amptune.patch.spec import PatchSpec
from amptune.patch.text import read_source

_RUNTIME_FILE = Path(__file__).parent.parent / "runtime.py"


def patched_files(path: Path, plan: Plan, spec: PatchSpec) -> dict[str, bytes]:
    """File name -> content: ``<stem>_amptuned.py``, ``amptune_runtime.py`` and ``<stem>.patch``.

    The diff changes the user's own file and puts the runtime beside it, unless the same runtime lies there already.
    Its paths are relative to the working directory (``git apply x.patch``, ``patch -p1 < x.patch``).

    Raises:
        InputError: the file cannot be read or patched.
        PlanError: the plan is for another model.
    """
    source, encoding = read_source(path)
    patched = patch_source(source, plan, spec)
    check_patched(source, patched, plan, spec)
    runtime = runtime_text()
    diff = unified_diff(source, patched, shown_in_diff(path)).encode(encoding)
    diff += _runtime_diff(path.parent / f"{RUNTIME}.py", runtime).encode()
    return {
        patched_name(path): _encode(patched, encoding, spec),
        f"{RUNTIME}.py": runtime.encode(),
        f"{path.stem}.patch": diff,
    }


def patched_name(path: Path) -> str:
    """What the patched file of the file at ``path`` is called."""
    return f"{path.stem}_amptuned.py"


def runtime_text() -> str:
    """The runtime that stands beside a patched file, exactly as amptune has it."""
    return _RUNTIME_FILE.read_text(encoding="utf-8")


def _runtime_diff(beside: Path, runtime: str) -> str:
    present = read_source(beside)[0] if beside.exists() else None
    return unified_diff(present, runtime, shown_in_diff(beside))


def _encode(text: str, encoding: str, spec: PatchSpec) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{spec.path} is in {encoding}, which cannot hold {error.object[error.start]!r} of the plan",
            hint="save the file as UTF-8",
        ) from error
