"""The worker process: what breaks in it fails one request, and the next one is answered by a new process."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amptune.capture import TargetSpec
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.errors import TuneError, WorkError
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime, Yardstick
from amptune.tune.workers import process
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.process import TrialError, WorkerProcess, must
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import MLP

MISBEHAVING = MLP.replace(
    "        x = self.norm(self.embed(ids))",
    """        x = self.norm(self.embed(ids))
        if x.dtype == torch.bfloat16:
            import os, time
            print("printed by the model")
            how = open(__file__.replace(".py", ".how")).read()
            os._exit(7) if how == "exit" else time.sleep(60) if how == "hang" else 1 / 0""",
)
SLOW_IN_BF16 = MLP.replace(
    "        x = self.norm(self.embed(ids))",
    """        x = self.norm(self.embed(ids))
        import time
        time.sleep(0.02 if x.dtype == torch.bfloat16 else 0)""",
)
LOWERED = plan_candidate(Plan(sites={name: SitePlan(Format.BF16) for name in ("embed", "norm", "fc1", "fc2")}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MISBEHAVING)
    return tmp_path


@pytest.fixture
def worker(folder: Path) -> Iterator[WorkerProcess]:
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=2)
    with WorkerProcess(Job(options, None, {}, (), threads=1), lambda *_: None) as process:
        yield process


def test_a_crash_a_hang_and_an_exception_fail_one_trial_each(worker: WorkerProcess, folder: Path) -> None:
    how = folder / "net.how"
    how.write_text("raise")
    with pytest.raises(TrialError, match=r"ZeroDivisionError: division by zero \(.*net\.py:\d+\)"):
        worker.request("trial", LOWERED, None, timeout=120)
    how.write_text("exit")
    with pytest.raises(TrialError, match=r"worker process died \(exit code 7\)"):
        worker.request("trial", LOWERED, None, timeout=120)
    how.write_text("hang")
    with pytest.raises(TrialError, match="no result within 15 s"):
        worker.request("trial", LOWERED, None, timeout=15)
    measured = worker.request("trial", Candidate("fp32"), None, timeout=120)
    assert measured.quality.valid


@pytest.mark.parametrize(
    ("answer", "said"),
    [("lambda: 0", "worker's answer to 'recipes' cannot be sent"), ("Own()", "for 'recipes' cannot be read")],
)
def test_an_answer_that_cannot_be_pickled_or_read_fails_one_request(
    worker: WorkerProcess, folder: Path, answer: str, said: str
) -> None:
    """One of a class that the file of the user alone has can be sent, but not be read where that file is not loaded."""
    cannot_go = f"""
from amptune.tune.workers.worker import Worker
class Own:
    pass
Worker.recipes_of_before, Worker.recipes = Worker.recipes, lambda self: {answer}
"""
    (folder / "net.py").write_text(MLP + cannot_go)
    with pytest.raises(TrialError, match=said) as failure:
        worker.request("recipes", timeout=120)
    assert not failure.value.worker_lost
    (child,) = multiprocessing.active_children()
    assert [candidate.name for candidate in worker.request("recipes_of_before", timeout=120)][0] == "fp32"
    assert multiprocessing.active_children() == [child]


def test_a_slow_moment_of_the_host_does_not_spare_a_candidate_orders_of_the_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One order is enough for what is too slow to win, and what is compared with another's step may not be."""
    (folder / "net.py").write_text(SLOW_IN_BF16)
    monkeypatch.setattr(StepTime, "launch_bound", True)
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=4, tolerance=1e-9)
    worker = Worker(Job(options, None, {}, (), threads=1), lambda *_: None)
    assert worker.trial(Candidate("fp32"), None).quality.valid
    then_as_fast, then_faster = (Yardstick(Candidate("fp32"), ms) for ms in (1e3, 1e-3))
    assert [worker.trial(LOWERED, None, beside).quality.steps for beside in (then_as_fast, then_faster)] == [4, 12]


def test_what_the_reference_takes_in_a_trial_is_told_apart(folder: Path) -> None:
    (folder / "net.py").write_text(MLP)
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=4, tolerance=1e-9)
    holds: list[bool] = []
    worker = Worker(Job(options, None, {}, (), threads=1), lambda *_: None, holds.append)
    assert worker.trial(LOWERED, None).seconds["reference"] > 0, "a worker that is new"
    assert holds == [True, False] * 4, "the reference, and FP32 with weights that are off at random in three orders"
    del worker.reference.losses[1:]
    worker.reference.shaken[:] = [0.0]  # so that no trial is valid, and the next may be the fastest
    worker._best_ms = math.inf
    first, second = (worker.trial(LOWERED, None).seconds for _ in range(2))
    assert holds == [True, False] * 6, "two further orders"
    assert first["reference"] > 0
    assert first["quality"] > 0
    assert "reference" not in second


@pytest.mark.parametrize("most", [60.0, 4.0])
def test_while_the_reference_trains_the_time_of_a_request_stands_still(folder: Path, most: float) -> None:
    """A trial was ended for what its reference took, and so was the same one when the search was resumed."""
    holding = """
import time
from amptune.tune.workers.worker import Worker
def recipes(self):
    self.hold(True)
    time.sleep(7)
    self.hold(False)
    return "done"
def can_compile_loss(self):
    self.hold(True)
    time.sleep(0.5)
    self.hold(False)
    raise ValueError("no")
Worker.recipes, Worker.can_compile_loss = recipes, can_compile_loss
"""
    (folder / "net.py").write_text(MLP + holding)
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=2, trial_timeout=most)
    with WorkerProcess(Job(options, None, {}, (), threads=1), lambda *_: None) as worker:
        with pytest.raises(TrialError, match="no") as failure:
            worker.request("can_compile_loss", timeout=120)
        assert 0.4 < failure.value.held < 7
        if most > 7:
            assert worker.request("recipes", timeout=3) == "done"
        else:
            with pytest.raises(TrialError, match="no result within 3 s"):
                worker.request("recipes", timeout=3)


def test_a_long_silence_of_the_worker_is_told(
    worker: WorkerProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "net.how").write_text("hang")
    worker.request("prepare", timeout=120)
    told: list[float] = []
    worker.on_silence = told.append
    monkeypatch.setattr(process, "SILENCE_SECONDS", 1.0)
    with pytest.raises(TrialError, match="no result within 5 s"):
        worker.request("trial", LOWERED, None, timeout=5)
    assert len(told) >= 3
    assert told == sorted(told)
    assert 0.9 < told[0] < told[-1] < 5


def test_a_started_worker_takes_its_job_later(folder: Path) -> None:
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=2)
    (folder / "net.how").write_text("raise")
    with WorkerProcess(None, lambda *_: None) as process:
        process.start()
        process.job = Job(options, None, {}, (), threads=1)
        assert [candidate.name for candidate in process.request("recipes", timeout=120)][0] == "fp32"


def test_ctrl_c_while_a_worker_gets_ready_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerProcess(None, lambda *_: None) as process:
        process.start()
        time.sleep(0.5)  # Python is up, and busy importing torch
        (child,) = multiprocessing.active_children()
        assert child.pid
        os.kill(child.pid, signal.SIGINT)
        time.sleep(1)
        assert child.is_alive()
    assert "Traceback" not in capfd.readouterr().err


def test_what_the_user_must_read_comes_through(folder: Path, worker: WorkerProcess) -> None:
    nan = MLP.replace("return F.cross_entropy(", "return float('nan') * F.cross_entropy(")
    (folder / "net.py").write_text(nan)
    with pytest.raises(TuneError, match="nan before the first step"):
        worker.request("prepare", timeout=120)


def test_a_request_that_must_not_fail_says_what_was_being_done() -> None:
    def fails() -> None:
        raise TrialError("out of memory")

    with pytest.raises(WorkError, match="the reference failed: out of memory") as caught:
        must(fails, "the reference failed")
    assert "smaller batches" in str(caught.value.hint)


def test_batches_may_come_from_a_loader_with_processes_of_its_own(worker: WorkerProcess, folder: Path) -> None:
    loader = """
import torch.utils.data
class Own(list):
    pass
def train_batches():
    return torch.utils.data.DataLoader(Own([(torch.ones(8).long(),) * 2] * 12), 2, num_workers=1)
"""
    (folder / "net.py").write_text(MLP.replace("next(train_batches())", "next(iter(train_batches()))") + loader)
    assert worker.request("prepare", timeout=120).quality_data == "train_batches"


def test_what_the_model_prints_stays_off_stdout(
    worker: WorkerProcess, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "net.how").write_text("raise")
    with pytest.raises(TrialError):
        worker.request("trial", LOWERED, None, timeout=120)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "printed by the model" in captured.err


ORPHAN = """
import os, signal
from pathlib import Path
from amptune.capture import TargetSpec
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.process import WorkerProcess
from amptune.tune.workers.job import Job

if __name__ == "__main__":
    options = TuneOptions(TargetSpec("net.py"), Path("out"), steps=2)
    WorkerProcess(Job(options, None, {}, (), threads=1), lambda *_: None).request("prepare", timeout=120)
"""
SLEEPING = MLP.replace(
    "        x = self.norm(self.embed(ids))",
    """        import os, time
        open("pid", "w").write(str(os.getpid()))
        time.sleep(60)
        x = self.norm(self.embed(ids))""",
)


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SLEEPING)
    (tmp_path / "parent.py").write_text(ORPHAN)
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text() != "", seconds=100)
    parent.kill()
    _, said = parent.communicate(timeout=20)  # the worker holds stderr open for as long as it lives
    assert "Traceback" not in said
    wait_until(lambda: not is_running(int(pid.read_text())), seconds=20)


def test_an_answer_that_nobody_waits_for_ends_the_worker_in_silence(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As at the end of ``--timeout``, when the trial in flight is given up in the moment in which it is done."""
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=2)
    with WorkerProcess(None, lambda *_: None) as process:
        connection = process.start()
        (child,) = multiprocessing.active_children()
        connection.send(Job(options, None, {}, (), threads=1))
        connection.send(("recipes", ()))
        connection.close()
        child.join(100)
        assert child.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_a_worker_imports_torch_beside_a_file_that_is_called_like_what_torch_imports(folder: Path) -> None:
    (folder / "random.py").write_text("")
    options = TuneOptions(TargetSpec(str(folder / "net.py")), folder / "out", steps=2)
    before = list(sys.path)
    sys.path.insert(0, str(folder))  # as loading the target in this process leaves it
    try:
        with WorkerProcess(Job(options, None, {}, (), threads=1), lambda *_: None) as process:
            process.request("recipes", timeout=120)
    finally:
        sys.path[:] = before


SIGNALLED = """\
from multiprocessing import resource_tracker

from amptune.tune.workers.process import WorkerProcess

if __name__ == "__main__":
    with WorkerProcess(None, print) as worker:
        worker.start()
        resource_tracker.register("/semaphore-of-a-lost-worker", "semaphore")
"""


def test_semaphores_of_a_lost_worker_are_freed_in_silence(tmp_path: Path) -> None:
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
