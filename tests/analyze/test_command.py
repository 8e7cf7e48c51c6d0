"""``amptune analyze`` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..inprocess import amptune

ROOT = Path(__file__).resolve().parents[2]
MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self, width=1003):
        super().__init__()
        self.fc = nn.Linear(1000, width)

    def forward(self, x):
        print("a forward that prints")
        return torch.log(torch.softmax(self.fc(x), -1))


def make_model():
    return Model()


def make_batch():
    return torch.randn(65536, 1000), torch.randint(0, 1000, (65536,))


def loss_fn(output, batch):
    return F.nll_loss(output, batch[1])
"""


def run(folder: Path, *arguments: str, source: str = MODEL) -> subprocess.CompletedProcess[str]:
    """In this process."""
    (folder / "model.py").write_text(source)
    return amptune(folder, "analyze", *arguments)


def run_process(
    folder: Path, *arguments: str, source: str = MODEL, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    (folder / "model.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'rules'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "amptune", "analyze", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_text_report(tmp_path: Path) -> None:
    done = run_process(tmp_path, "--gpu", "h100", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    assert "model.py:13:40: warning G102 at fc: out_features N = 1003" in done.stdout
    assert "model.py:13:16: warning G204" in done.stdout
    assert "autocast-bf16+fixed" in done.stdout
    assert "where the time goes on h100" in done.stdout
    assert "a forward that prints" not in done.stdout
    assert "sites captured by" in done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "out_features N = 1003" in page
    assert "wrote page.html" in done.stderr


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    done = run(tmp_path, "--gpu", "v100", "--gpu", "h100", "--format", "json")
    data = json.loads(done.stdout)
    assert data["version"] == 1
    assert data["errors"] == []
    assert set(data["estimate"]) == {"v100", "h100"}
    assert set(data["capture"]) == {"frontend", "sites", "seconds"}
    assert {"G102", "G204", "G405"} <= {finding["rule"] for finding in data["findings"]}
    (padding,) = [finding for finding in data["findings"] if finding["rule"] == "G102"]
    assert (padding["path"], padding["line"], padding["site"]) == ("model.py", 13, "fc")


@pytest.mark.parametrize(
    ("form", "expected"), [("sarif", '"ruleId": "G102"'), ("github", "::warning file=model.py,line=13")]
)
def test_other_formats(form: str, expected: str, tmp_path: Path) -> None:
    assert expected in run(tmp_path, "--gpu", "h100", "--format", form).stdout


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("never", 0)])
def test_exit_code(fail_on: str, code: int, tmp_path: Path) -> None:
    assert run(tmp_path, "--gpu", "h100", "--fail-on", fail_on).returncode == code


def test_selection_and_recipes(tmp_path: Path) -> None:
    done = run(tmp_path, "--gpu", "h100", "--select", "G2", "--recipe", "autocast-fp16", "--format", "json")
    data = json.loads(done.stdout)
    assert {finding["rule"] for finding in data["findings"]} == {"G204"}
    assert set(data["estimate"]["h100"]) == {"fp32", "fp32+fixed", "autocast-fp16", "autocast-fp16+fixed"}


def test_settings_of_the_project(tmp_path: Path) -> None:
    text = (
        '[tool.amptune]\nmodel = "model.py"\nignore = ["G102", "AMP101"]\nselect = ["AMP1", "G1"]\nfail-on = "info"\n'
    )
    (tmp_path / "pyproject.toml").write_text(text)
    done = run(tmp_path, "--gpu", "h100", "--format", "json")
    assert {finding["rule"] for finding in json.loads(done.stdout)["findings"]} == {"G108"}
    assert done.returncode == 1


def test_modules_can_be_left_out_by_the_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.amptune]\nignore-modules = ["fc*"]\n')
    found = json.loads(run(tmp_path, "--gpu", "h100", "--format", "json").stdout)["findings"]
    assert {finding["site"] for finding in found} == {"#log.0"}


def test_no_loss_is_the_forward_alone(tmp_path: Path) -> None:
    with_loss = json.loads(run(tmp_path, "--gpu", "h100", "--format", "json").stdout)
    without = json.loads(run(tmp_path, "--gpu", "h100", "--format", "json", "--no-loss").stdout)
    step = [data["estimate"]["h100"]["fp32"]["step_ms"] for data in (with_loss, without)]
    assert step[1] < 0.5 * step[0]


def test_without_a_gpu_a_stated_table_is_used(tmp_path: Path) -> None:
    done = run(tmp_path, "--format", "json")
    if "no GPU here" in done.stderr:
        assert set(json.loads(done.stdout)["estimate"]) == {"a100", "h100", "b200"}
    else:
        assert len(json.loads(done.stdout)["estimate"]) == 1


def test_the_cpu_has_rules_and_no_estimate(tmp_path: Path) -> None:
    data = json.loads(run(tmp_path, "--gpu", "cpu", "--format", "json").stdout)
    assert data["estimate"] == {}
    assert "G209" in {finding["rule"] for finding in data["findings"]}  # softmax stays in bf16 under CPU autocast


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--gpu", "h1000"), 2, "did you mean h100?"),
        (("--recipe", "autocast-bf17"), 2, "did you mean autocast-bf16?"),
        (("--select", "G999"), 2, "no rule is called 'G999'"),
        (("--arg", "width"), 2, "NAME=VALUE"),
        (("--timeout", "-1"), 2, "not a positive number"),
        (("missing.py",), 2, "missing.py"),
        (("--html", "no/folder/page.html"), 2, "no/folder"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    done = run(tmp_path, "--gpu", "h100", source=MODEL.replace("nn.Linear(1000", "nn.Linear(999"))
    assert done.returncode == 3, done.stderr
    assert "model.py:13" in done.stderr
    assert "Traceback" not in done.stderr


def test_nan_in_the_batch_and_the_weights_is_said(tmp_path: Path) -> None:
    broken = MODEL.replace("torch.randn(", "float('nan') * torch.randn(", 1)
    assert broken != MODEL
    done = run(tmp_path, "--gpu", "h100", source=broken)
    assert re.search(r"note: \w+ of the batch holds (\d+) NaN among \1 numbers: clean it in make_batch", done.stderr)
    assert len([line for line in done.stderr.splitlines() if "NaN" in line]) == 1


def test_what_c_code_writes_to_stdout_is_kept_off_it(tmp_path: Path) -> None:
    raw = MODEL.replace('print("a forward that prints")', "__import__('os').write(1, b'raw words')")
    done = run_process(tmp_path, "--gpu", "h100", "--format", "json", source=raw)
    assert json.loads(done.stdout)["version"] == 1
    assert "raw words" in done.stderr


def test_a_forward_that_hangs(tmp_path: Path) -> None:
    hanging = MODEL.replace('print("a forward that prints")', "__import__('time').sleep(100)")
    done = run_process(tmp_path, "--gpu", "h100", "--timeout", "8", source=hanging)
    assert done.returncode == 3
    assert "did not finish within 8 s" in done.stderr
    assert done.stdout == ""


def test_a_long_forward_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amptune.capture.record.SAID_EVERY", 3)
    monkeypatch.setattr("amptune.commands.analyze._MANY_CALLS", 3)
    said = run(tmp_path, "--gpu", "h100").stderr.splitlines()
    assert "amptune: 3 calls recorded so far" in said
    assert re.fullmatch(r"amptune: judging what \d+ calls do", said[-1])
