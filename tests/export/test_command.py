"""``amptune export`` as a command: targets, errors, where the output goes, what is said on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amptune.cli import run
from amptune.export.registry import TARGETS

from . import plans


@pytest.mark.parametrize("wrong", ["pytroch", "deepspeeed", "transformer_engine", "Lightning"])
def test_an_unknown_target_is_named_with_the_nearest(wrong, tmp_path, capsys):
    assert run(["export", str(plans.write(tmp_path, "bf16")), "--to", wrong, "-o", str(tmp_path / "x.py")]) == 2
    captured = capsys.readouterr()
    meant = {"pytroch": "pytorch", "deepspeeed": "deepspeed", "transformer_engine": "transformer-engine"}
    assert f"did you mean {meant.get(wrong, 'lightning')}?" in captured.err
    assert (captured.out, (tmp_path / "x.py").exists()) == ("", False)


def test_an_unknown_target_that_is_near_none_is_told_all(tmp_path, capsys):
    assert run(["export", str(plans.write(tmp_path, "bf16")), "--to", "zzz", "-o", str(tmp_path / "x.py")]) == 2
    assert "bitsandbytes; amptune export --list shows them all" in capsys.readouterr().err


def test_the_list_names_every_target(capsys):
    assert run(["export", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(TARGETS)


def test_parameters_in_bf16_are_refused(tmp_path, capsys):
    path = plans.write(tmp_path, "bf16")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"params": "bf16"}))
    assert run(["export", str(path), "--to", "pytorch", "-o", str(tmp_path / "train.py")]) == 2
    assert "params-bf16" in capsys.readouterr().err
    assert not (tmp_path / "train.py").exists()


@pytest.mark.parametrize("arguments", [[], ["plan.json"], ["--to", "pytorch"]])
def test_a_plan_and_a_target_are_needed(arguments, capsys):
    assert run(["export", *arguments]) == 2
    assert "--to NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[]", "expected an object"), ('{"version": 99}', "schema version 99 is newer")],
)
def test_a_bad_plan_is_refused_and_the_old_file_kept(content, words, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(content)
    (tmp_path / "train.py").write_text("mine")
    assert run(["export", str(tmp_path / "plan.json"), "--to", "pytorch", "-o", str(tmp_path / "train.py")]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "train.py").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "train.py"]


def test_an_unknown_format_in_the_plan_is_named(tmp_path, capsys):
    path = plans.write(tmp_path, "bf16")
    data = json.loads(path.read_text())
    data["sites"]["head"]["format"] = "bf61"
    path.write_text(json.dumps(data))
    assert run(["export", str(path), "--to", "keras"]) == 2
    error = capsys.readouterr().err
    assert "bf61" in error
    assert "head" in error


def test_a_missing_folder_of_the_output(tmp_path, capsys):
    assert run(["export", str(plans.write(tmp_path, "bf16")), "--to", "jax", "-o", str(tmp_path / "no" / "x.py")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("target", TARGETS)
def test_stdout_is_the_file_alone_and_stderr_says_what_is_lost(target, tmp_path, capsys):
    plan_path = plans.write(tmp_path, "mixed")
    assert run(["export", str(plan_path), "--to", target]) == 0
    printed = capsys.readouterr()
    assert run(["export", str(plan_path), "--to", target, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_text() == printed.out
    assert capsys.readouterr().out == ""
    lost = [line for line in printed.err.splitlines() if line.startswith(f"amptune: lost in {target}: ")]
    assert bool(lost) == (target not in ("pytorch", "accelerate")), "these two express a whole plan, the others do not"
    in_file = " ".join(printed.out.replace("\n#", " ").split())
    for line in lost:
        said = line.partition(f"lost in {target}: ")[2]
        assert " ".join(said.split()) in in_file


def test_nothing_of_torch_is_imported(tmp_path):
    plan_path = plans.write(tmp_path, "fp8")
    code = (
        "import sys; from amptune.cli import run; from amptune.export.registry import TARGETS\n"
        f"plan, out = {str(plan_path)!r}, {str(tmp_path / 'x')!r}\n"
        "for name in TARGETS: assert run(['export', plan, '--to', name, '-o', out]) == 0\n"
        "assert not {'torch', 'networkx', 'optuna'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(root)}
    )
    assert result.returncode == 0, result.stderr[-2000:]
