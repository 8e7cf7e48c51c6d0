"""The time limit of analyze holds whatever the model does; each case is a process of its own, without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background have it ignored
from amptune.commands.guard import guarded
from amptune.errors import AmptuneError

def work(finished):
    {body}
    finished()
    print("the result")
    return {code}

try:
    sys.exit(guarded({seconds}, work))
except AmptuneError as error:
    print(f"error: {{error}}", file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
"""


def start(body: str, seconds: float | None = 20, code: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body, seconds=seconds, code=code)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(body: str, seconds: float | None = 20, code: int = 0) -> tuple[int, str, str]:
    process = start(body, seconds, code)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_the_work_is_kept(code: int) -> None:
    assert run("pass", code=code) == (code, "the result\n", "")


@pytest.mark.parametrize("body", ["time.sleep(1000)", "sum(range(10**13))"], ids=["sleeps", "holds the lock"])
def test_what_hangs_is_ended(body: str) -> None:
    code, out, err = run(body, seconds=0.5)
    assert (code, out) == (3, "")
    assert err.startswith("error: analyze did not finish within 0.5 s\n")


def test_what_comes_after_the_work_has_no_limit() -> None:
    assert run("pass\n    finished()\n    time.sleep(1)", seconds=0.5)[:2] == (0, "the result\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [("os._exit(7)", "exited with code 7"), ("os._exit(0)", "exited with code 0"),
     ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"), ("os.abort()", "was ended by SIGABRT")],
)  # fmt: skip
def test_a_model_that_ends_the_process_is_told_so(body: str, said: str) -> None:
    code, out, err = run(body)
    assert (code, out) == (3, "")
    assert said in err


def test_without_a_limit_the_end_of_the_process_is_told_all_the_same() -> None:
    code, _, err = run("os._exit(0)", seconds=None)
    assert code == 3
    assert "exited with code 0" in err
    assert run("pass", seconds=None, code=1) == (1, "the result\n", "")


def test_a_model_that_forks_gives_one_result() -> None:
    assert run("os.fork()") == (0, "the result\n", "")


def test_a_program_that_runs_a_command_line_goes_on_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\n\nclass Net(torch.nn.Linear):\n    pass\n")
    script = "from amptune.cli import run; code = run(['init', 'net.py:Net', '--arg', 'x=1']); print('after', code)"
    out = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                         text=True, capture_output=True, check=True, timeout=120).stdout  # fmt: skip
    assert out.count("after") == 1


def test_errors_of_the_work_come_through() -> None:
    code, out, err = run("from amptune.errors import UsageError; raise UsageError('a wrong flag')")
    assert (code, out, err) == (2, "", "error: a wrong flag\n")


def test_ctrl_c_ends_both_processes(tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = start(f"open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(1000)")
    deadline = time.monotonic() + 30
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize("at_ctrl_c", ["default_int_handler", "SIG_IGN"])
def test_sigterm_lets_the_work_clean_up(tmp_path: Path, at_ctrl_c: str) -> None:
    """As a batch system or docker stop send it, to the first process alone; what a script starts in the background
    ignores Ctrl-C."""
    body = (
        f"signal.signal(signal.SIGINT, signal.{at_ctrl_c}); import tempfile, pathlib; "
        f"folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r}); "
        f"(pathlib.Path(folder.name) / 'begun').touch(); time.sleep(1000)"
    )
    process = start(body)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*/begun")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert told == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_what_the_model_forks_ends_on_sigterm_in_silence() -> None:
    body = (
        "child = os.fork() or time.sleep(1000); time.sleep(0.2); os.kill(child, 15); "
        "print(os.waitpid(child, 0)[1], file=sys.stderr)"
    )
    assert run(body) == (0, "the result\n", f"{int(signal.SIGTERM)}\n")
