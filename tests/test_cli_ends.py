"""A model that ends its process, by itself or by a crash in C code, is one message of every command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .inprocess import amptune as amptune_here
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


def test_a_model_that_ends_the_process_under_autocast_is_tuned_all_the_same(tmp_path: Path) -> None:
    """It fails the trials of those recipes, and nothing before them."""
    (tmp_path / "net.py").write_text(ending("if torch.is_autocast_enabled('cpu'): import os; os._exit(5)"))
    result = amptune(tmp_path, "tune", "net.py", "--budget", "3", *FAST)
    assert result.returncode == 0, result.stderr
    assert "gradients under autocast were not compared: the worker process died (exit code 5)" in result.stderr
    assert (tmp_path / "amptune-out/net/net_amptuned.py").exists()


OUTPUTS = {
    "tune": ("--out", "cannot make the folder"),
    "bench": ("--out", "cannot write"),
    "apply": ("--out", "cannot make the folder"),
    "verify": ("--out", "cannot make the folder"),
    "analyze": ("--html", "cannot write"),
}


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, command: str, place: str) -> None:
    """A file is in the way, or the folder takes no files; the model, which cannot be loaded, is not looked at."""
    (tmp_path / "net.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "file").write_text("")
    write_plan(tmp_path)
    option, words = OUTPUTS[command]
    arguments = COMMANDS.get(command, (command, "net.py"))
    result = amptune_here(tmp_path, *arguments, option, place)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{words} {place}" in result.stderr
    assert "loaded" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "net.py", "plan.json"]


@pytest.mark.parametrize(("place", "why"), [("out", "it is a folder"), ("no/out.html", "no does not exist")])
@pytest.mark.parametrize("command", ["bench", "analyze"])
def test_a_file_that_cannot_be_one_is_said_before_the_work(tmp_path: Path, command: str, place: str, why: str) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "out").mkdir()
    result = amptune_here(tmp_path, *COMMANDS.get(command, (command, "net.py")), OUTPUTS[command][0], place)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"cannot write {place}: {why}" in result.stderr
    assert "loaded" not in result.stderr


def test_an_output_folder_may_be_made_with_those_above_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    write_plan(tmp_path)
    result = amptune_here(tmp_path, *COMMANDS["verify"], "--out", "new/folder")
    assert (result.returncode, (tmp_path / "new/folder/verify.html").exists()) == (1, True)  # too short for a verdict


def test_that_there_is_nothing_to_resume_is_said_before_the_work(tmp_path: Path) -> None:
    """The model, which cannot be loaded, is not looked at: the user may have meant another folder."""
    (tmp_path / "net.py").write_text("raise SystemExit('loaded')")
    result = amptune_here(tmp_path, "tune", "net.py", "--resume", "--out", "elsewhere")
    assert result.returncode == 2
    assert result.stderr.startswith("nothing to resume in elsewhere: a new study begins\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/study.journal").write_text('{"op_code": 0}\n')
    assert "nothing to resume" not in amptune_here(tmp_path, "tune", "net.py", "--resume", "--out", "elsewhere").stderr
