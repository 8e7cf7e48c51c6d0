"""LoRA by the library that people use, in the environment of the export tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ..export.test_libraries import interpreter

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_adapters_of_peft_train_on_a_planned_model_in_both_orders() -> None:
    done = subprocess.run(
        [interpreter(), "-m", "tests.apply.lora_with_peft"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
