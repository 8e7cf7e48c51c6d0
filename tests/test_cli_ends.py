"""A model that ends its process, by itself or by a crash in C code, is one message of every command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_cli_apply import write_plan
from .test_cli_tune import FAST, amptune
from .tune.conftest import MLP

COMMANDS = {
    "tune": ("tune", "net.py", "--budget", "3", *FAST),
    "bench": ("bench", "net.py", "--rounds", "1", *FAST),
    "apply": ("apply", "plan.json", "net.py"),
    "verify": ("verify", "net.py", "--plan", "plan.json", "--steps", "5", "--device", "cpu"),
    "debug": ("debug", "net.py", "--steps", "2", "--device", "cpu"),
    "init": ("init", "net.py:Net"),
}
ENDS = {"exit": ("import os; os._exit(0)", "exited with code 0"),
        "crash": ("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV")}  # fmt: skip


def ending(statement: str) -> str:
    before = "        x = self.norm("
    return MLP.replace(before, f"        {statement}\n{before}")


@pytest.mark.parametrize(
    ("command", "how"), [*((command, "exit") for command in COMMANDS), ("apply", "crash"), ("debug", "crash")]
)
def test_a_model_that_ends_the_process_is_told_so(tmp_path: Path, command: str, how: str) -> None:
    statement, said = ENDS[how]
    source = ending(statement)
    if command == "init":  # it asks for what is missing
        source = source[: source.index("\n\ndef make_batch")]
    (tmp_path / "net.py").write_text(source)
    write_plan(tmp_path)
    result = amptune(tmp_path, *COMMANDS[command])
    assert (result.returncode, result.stdout) == (3, "")
    assert f"the process that ran the model {said}" in result.stderr
    assert not (tmp_path / "amptune-out/net/net_amptuned.py").exists()


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_loss_that_ends_the_process_after_some_steps_is_told_so(tmp_path: Path, command: str) -> None:
    """Where the capture has seen nothing of it, and the work has begun."""
    source = MLP.replace("def loss_fn(output, batch):\n", "CALLS = []\n\n\ndef loss_fn(output, batch):\n"
                         "    CALLS.append(1)\n    if len(CALLS) > 7:\n        import os; os._exit(5)\n")  # fmt: skip
    assert "CALLS.append" in source
    (tmp_path / "net.py").write_text(source)
    write_plan(tmp_path)
    result = amptune(tmp_path, *COMMANDS[command])
    assert (result.returncode, result.stdout) == (3, ""), result.stdout
    assert "exit" in result.stderr
    assert "code 5" in result.stderr


def test_a_bench_whose_file_is_refused_shows_its_numbers_first(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    result = amptune(tmp_path, *COMMANDS["bench"], "--out", "/proc/bench.json")
    assert result.returncode == 2
    assert "cannot write /proc/bench.json" in result.stderr
    assert "fp32" in result.stdout
