"""``amptune tune`` as a user runs it: a process, a model file, an output folder; mistakes are made in this process."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from .inprocess import amptune as amptune_here
from .tune.conftest import MLP

FAST = ("--steps", "3", "--device", "cpu")
NO_AMPTUNE = (
    "import sys; sys.modules.update({'amptune': None, 'amptune_rules': None, 'libcst': None, 'optuna': None})\n"
)


def amptune(folder: Path, *arguments: str, first: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "amptune", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300, env=_environment(*first),
    )  # fmt: skip


def _environment(*first: Path) -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    places = os.pathsep.join(map(str, [*first, root, root / "rules"]))
    return os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}


def in_fresh_python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where amptune and its dependencies cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", NO_AMPTUNE + code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "net.py").write_text(MLP)
    result = amptune(folder, "tune", "net.py", "--budget", "6", *FAST)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


def test_every_file_is_there_and_named_on_stdout(tuned: Path) -> None:
    out = tuned / "amptune-out" / "net"
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        "plan.json", "scaler.json", "result.json", "report.html", "study.journal", "net_amptuned.py",
        "amptune_runtime.py", "net.patch",
    }  # fmt: skip
    stdout = (tuned / "stdout.txt").read_text()
    assert all(f"amptune-out/net/{name}" in stdout for name in ("net_amptuned.py", "scaler.json", "report.html"))


def test_the_row_of_the_best_says_that_its_time_is_that_of_the_repeats(tuned: Path) -> None:
    result = json.loads((tuned / "amptune-out/net/result.json").read_text())
    label = "best, repeated" if result["repeated"] else "best"
    row = next(line for line in (tuned / "stdout.txt").read_text().splitlines() if line.startswith("best"))
    assert row.startswith(f"{label}: {result['best']['recipe']}")
    assert f"{result['best']['step_ms']['median']:.2f}" in row


def test_the_result_holds_what_the_contract_names(tuned: Path) -> None:
    result = json.loads((tuned / "amptune-out/net/result.json").read_text())
    assert result["version"] == 1
    assert result["verdict"] in ("plan", "stock")
    assert [entry["recipe"] for entry in result["stock"]][:1] == ["fp32"]
    assert len(result["trials"]) == 6
    assert {"device", "mode", "best", "speedup_over_best_stock", "seconds", "noise", "quality_data", "seed",
            "versions", "attribution"} <= result.keys()  # fmt: skip
    assert set(result["best"]["step_ms"]) == {"median", "low", "high", "repeats"}
    assert {"number", "kind", "plan_hash", "state", "reason", "step_ms", "predicted_ms", "loss_gap"} <= result[
        "trials"
    ][0].keys()


def test_the_result_says_how_good_the_predictions_were(tuned: Path) -> None:
    result = json.loads((tuned / "amptune-out/net/result.json").read_text())
    plans = [trial for trial in result["trials"] if trial["recipe"] is None and trial["step_ms"]]
    assert result["prediction"]["trials"] == len(plans)
    assert set(result["pareto"]) <= {trial["number"] for trial in result["trials"]}
    assert result["pareto"]
    assert (result["objective"], result["stopped"]) == ("time", "budget")


@pytest.mark.parametrize("option", [("--max-memory", "1GiB"), ("--objective", "memory")])
def test_memory_needs_a_gpu(tmp_path: Path, option: tuple[str, str]) -> None:
    (tmp_path / "net.py").write_text(MLP)
    result = amptune_here(tmp_path, "tune", "net.py", *option, *FAST)
    assert result.returncode == 2
    assert "the memory of a GPU only" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_patched_model_trains_without_amptune(tuned: Path) -> None:
    folder = tuned / "without"
    shutil.copytree(tuned / "amptune-out/net", folder)
    shutil.copy(tuned / "net.py", folder)
    code = """
import torch, net, net_amptuned
torch.manual_seed(0); original = net.make_model()
torch.manual_seed(0); patched = net_amptuned.make_model()
before = {k: (v.shape, v.dtype) for k, v in original.state_dict().items()}
patched.load_state_dict(original.state_dict())
assert {k: (v.shape, v.dtype) for k, v in patched.state_dict().items()} == before
optimizer = torch.optim.AdamW(patched.parameters(), lr=3e-3, fused=True)
losses = []
batches = net_amptuned.train_batches()
for _ in range(30):
    batch = next(batches)
    optimizer.zero_grad()
    loss = net_amptuned.loss_fn(patched(batch[0]), batch)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 0.3, losses
original.load_state_dict(patched.state_dict())
print("trained")
"""
    result = in_fresh_python(folder, code)
    assert result.stdout == "trained\n", result.stderr


def test_the_diff_applies(tuned: Path) -> None:
    if shutil.which("git") is None:
        pytest.fail("git is needed to apply the diff")
    folder = tuned / "applied"
    folder.mkdir()
    shutil.copy(tuned / "net.py", folder)
    patch = tuned / "amptune-out/net/net.patch"
    subprocess.run(["git", "apply", "--unsafe-paths", str(patch)], cwd=folder, check=True)
    assert (folder / "net.py").read_text() == (tuned / "amptune-out/net/net_amptuned.py").read_text()


def test_a_second_run_touches_nothing_unless_told(tuned: Path) -> None:
    out = tuned / "amptune-out" / "net"
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    result = amptune_here(tuned, "tune", "net.py", "--budget", "6", *FAST)
    assert result.returncode == 2
    assert "--resume" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_changed_model_is_not_resumed(tuned: Path) -> None:
    folder = tuned / "changed"
    folder.mkdir()
    shutil.copytree(tuned / "amptune-out", folder / "amptune-out")
    (folder / "net.py").write_text(MLP.replace("32", "40"))
    before = (folder / "amptune-out/net/result.json").read_bytes()
    result = amptune_here(folder, "tune", "net.py", "--budget", "7", "--resume", *FAST)
    assert result.returncode == 2
    assert "cannot be continued: the model has other operations or shapes" in result.stderr
    assert (folder / "amptune-out/net/result.json").read_bytes() == before


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    journal = tmp_path / "amptune-out/net/study.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "amptune", "tune", "net.py", "--budget", "5", *FAST],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and b'"outcome"' in journal.read_bytes()):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    measured = journal.read_bytes().count(b'"outcome"')
    assert measured >= 1
    result = amptune(tmp_path, "tune", "net.py", "--budget", "5", "--resume", "--format", "json", *FAST)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert len(data["trials"]) == 5
    assert f"continuing after {measured} trials" in result.stderr
    assert "[5/5] trial" in result.stderr


def _heed_ctrl_c() -> None:
    """As in a terminal: a script has what it starts in the background ignore it, these tests among it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_search_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    journal = tmp_path / "amptune-out/net/study.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "amptune", "tune", "net.py", "--budget", "50", *FAST],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment(),
        start_new_session=True, preexec_fn=_heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and b'"outcome"' in journal.read_bytes()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"note: trials kept in amptune-out/net: [1-9]\d*; amptune tune --resume goes on from there", told)
    assert told.endswith("amptune: interrupted\n")


@pytest.mark.parametrize(
    ("source", "arguments", "code", "words"),
    [
        (None, ("missing.py",), 2, ("missing.py",)),
        ("x = 1\n", ("net.py",), 2, ("net.py", "nn.Module")),
        (MLP, ("net.py", "--device", "cuda:7"), 2, ("cuda:7",)),
        (MLP, ("net.py", "--budget", "0"), 2, ("--budget",)),
        (MLP, ("net.py", "--arg", "width"), 2, ("NAME=VALUE",)),
        (MLP.replace("return F.cross_entropy(", "return float('nan') * F.cross_entropy("), ("net.py",), 3, ("nan",)),
        (
            MLP.replace(
                "(output.flatten(0, 1), batch[1].flatten())",
                "(output.flatten(0, 1), batch[1].flatten(), reduction='none')",
            ),
            ("net.py",),
            3,
            ("one element", "loss.mean()"),
        ),
        (
            MLP.replace("return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())", "return output.mean(), {}"),
            ("net.py",),
            3,
            ("returned a tuple", "return the loss alone"),
        ),
        (MLP + "def evaluate(model): return model(None)\n", ("net.py",), 3, ("evaluate(model) raised", "(net.py:")),
        (
            MLP.replace(
                "return torch.optim.AdamW(params, lr=3e-3, fused=True)",
                "return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(params, 0.1), 10)",
            ),
            ("net.py",),
            3,
            ("returned StepLR", "not its scheduler"),
        ),
        (MLP + "def evaluate(model): return 'good'\n", ("net.py",), 3, ("returned str, not a number",)),
        (MLP.replace("nn.Linear(16, 32)", "nn.Linear(17, 32)"), ("net.py",), 3, ("fc1", "17")),
        (MLP.replace("while True:", "for _ in range(2):"), ("net.py",), 3, ("train_batches() yielded 2",)),
        (MLP.replace("cross_entropy(output.", "cross_entropy(output.detach()."), ("net.py",), 3, (".detach()",)),
    ],
    ids=[
        "missing",
        "no model",
        "device",
        "budget",
        "arg",
        "nan reference",
        "not scalar",
        "tuple for a loss",
        "evaluate raises",
        "scheduler",
        "evaluate gives a text",
        "shape",
        "few batches",
        "detached",
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, source: str | None, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    if source is not None:
        (tmp_path / "net.py").write_text(source)
    result = amptune_here(tmp_path, "tune", *arguments, "--steps", "3")
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "amptune-out/net/result.json").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    (tmp_path / "file").write_text("")
    result = amptune_here(tmp_path, "tune", "net.py", "--out", "file/out", *FAST)
    assert result.returncode == 2
    assert "file/out" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_optimizer_that_needs_a_closure_is_named(tmp_path: Path) -> None:
    own = "def make_optimizer(params):\n    return torch.optim.LBFGS(params)\n"
    (tmp_path / "net.py").write_text(f"{MLP}\n\n{own}")
    result = amptune_here(tmp_path, "tune", "net.py", "--budget", "3", *FAST)
    assert result.returncode == 3
    assert "returned LBFGS, whose step() needs closure" in result.stderr
    assert "raised at" not in result.stderr


def test_a_file_that_hides_a_module_is_named(tmp_path: Path) -> None:
    """PYTHONPATH comes before Python's own modules, so that torch itself finds the user's file."""
    (tmp_path / "net.py").write_text(MLP)
    (tmp_path / "random.py").write_text("")
    result = amptune(tmp_path, "tune", "net.py", "--budget", "3", *FAST, first=[tmp_path])
    assert result.returncode == 2
    assert f"{tmp_path / 'random.py'} is imported in place of the module random" in result.stderr
    assert "rename random.py" in result.stderr
    assert "bug of amptune" not in result.stderr


def test_files_of_the_working_directory_hide_no_modules(tmp_path: Path) -> None:
    """``python -m`` puts it first on the path, as Python does where the worker and multiprocessing's tracker start."""
    (tmp_path / "net.py").write_text(MLP)
    for name in ("random.py", "signal.py", "subprocess.py"):
        (tmp_path / name).write_text("")
    result = amptune(tmp_path, "tune", "net.py", "--budget", "1", *FAST)
    assert (result.returncode, "Error" in result.stderr) == (0, False), result.stderr


def test_a_package_of_the_working_directory_is_a_target(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/__init__.py").write_text("")
    (tmp_path / "nets/mlp.py").write_text(MLP)
    result = amptune(tmp_path, "analyze", "nets.mlp:make_model", "--gpu", "h100")
    assert result.returncode == 0, result.stderr


def test_a_bench_with_a_plan_that_is_missing_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise RuntimeError('loaded')")
    result = amptune_here(tmp_path, "bench", "net.py", "--plan", "missing.json", *FAST)
    assert result.returncode == 2
    assert "missing.json" in result.stderr
    assert "loaded" not in result.stderr


def test_the_last_lines_say_what_to_do_now(tuned: Path) -> None:
    said = (tuned / "stdout.txt").read_text()
    plan = json.loads((tuned / "amptune-out/net/plan.json").read_text())
    changes = plan["sites"] or plan["loss"]["compile"]
    now = (
        "train with net_amptuned.py in place of your file"
        if changes
        else "train your file as it is, without torch.autocast"
    )
    assert f"What to do now: {now}" in said
    assert ("with the GradScaler of scaler.json" in said) is plan["scaler"]["enabled"]


def test_a_disk_that_is_full_is_said_of_the_study_and_the_study_goes_on(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    command = [sys.executable, "-m", "amptune", "tune", "net.py", "--budget", "3", *FAST]
    limited = f"ulimit -f 8; exec {shlex.join(command)}"  # in units of 1024 bytes; the cost table alone is larger
    done = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env=_environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot write amptune-out/net/study.journal: File too large" in done.stderr
    assert "standard output" not in done.stderr
    result = amptune(tmp_path, "tune", "net.py", "--budget", "3", "--resume", *FAST)
    assert result.returncode == 0, result.stderr
