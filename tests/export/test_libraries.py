"""Each exported file loaded by its library, in an environment of its own (``make test-full`` makes it).

The scripts in loads/ build one training step on the CPU and compare what every layer computes in with the plan.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amptune.export.registry import TARGETS

from . import plans
from .conftest import export, with_patched

ROOT = Path(__file__).parents[2]
LOADS = Path(__file__).parent / "loads"
ENVIRONMENT = "AMPTUNE_EXPORTS_PYTHON"
"""Names the interpreter of the environment, where it is not beside this one."""

PATCHED = ("bf16", "mixed", "fp16", "fp8")
CASES: dict[str, tuple[str, ...]] = {
    "pytorch": PATCHED,
    "accelerate": ("bf16", "mixed", "fp8", "stock-bf16"),
    "transformers": ("bf16", "fp8", "stock-bf16", "mixed"),
    "deepspeed": ("bf16", "mixed", "fp8", "stock-bf16"),
    "lightning": ("bf16", "mixed", "fp8", "stock-bf16", "stock-fp16"),
    "fsdp2": PATCHED,
    "torchao": ("fp8", "mixed"),
    "torchtitan": ("fp8",),
    "transformer-engine": ("fp8",),
    "megatron": ("fp8", "fp16"),
    "ms-swift": ("bf16", "fp8", "stock-fp16"),
    "keras": ("mixed", "fp8", "stock-bf16"),
    "jax": ("mixed", "fp8", "fp16"),
    "bitsandbytes": ("mixed", "fp16"),
}
NOT_PATCHED = {"torchao", "torchtitan", "transformer-engine", "megatron", "ms-swift", "keras", "jax", "bitsandbytes"}


def interpreter() -> Path:
    """The environment's Python. Skips where it is missing; ``make test-full`` makes it first and takes no skips."""
    python = Path(os.environ.get(ENVIRONMENT) or Path(sys.prefix) / "exports" / "bin" / "python")
    if not python.exists():
        made_by = f"python tests/export/environment.py {python.parents[1]}"
        pytest.skip(
            f"no environment of the exports' libraries ({python}): {made_by}, or name its Python in {ENVIRONMENT}"
        )
    return python


@pytest.mark.full
@pytest.mark.parametrize("target", CASES)
def test_the_library_loads_what_was_exported(target: str, tmp_path: Path) -> None:
    python = interpreter()
    source = plans.TRAINER_MODEL if target == "transformers" else plans.MODEL
    folders = []
    for name in CASES[target]:
        folder = tmp_path / name
        folder.mkdir()
        if target not in NOT_PATCHED and not name.startswith("stock"):
            with_patched(folder, name, source)
        export(folder, name, target, TARGETS[target].file, source)
        folders.append(str(folder))
    result = subprocess.run(
        [str(python), str(LOADS / f"load_{target.replace('-', '_')}.py"), *folders],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "rules")]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    passed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("passed ")]
    assert (result.returncode, passed) == (0, list(CASES[target])), result.stderr[-3000:]


def test_every_target_has_a_case_but_apex_which_is_the_loop_of_pytorch() -> None:
    assert {*CASES, "apex"} == set(TARGETS)
    scripts = {path.stem.removeprefix("load_").replace("_", "-") for path in LOADS.glob("load_*.py")}
    assert scripts == set(CASES)
