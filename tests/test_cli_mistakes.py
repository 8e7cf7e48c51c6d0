"""What a person mistypes or leaves out is one message that names it, and says what was probably meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .export import plans
from .inprocess import amptune
from .test_cli_apply import PLAN, write_plan
from .tune.conftest import MLP


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "net.py", "--budget", "x"), "argument --budget: x is not a whole number"),
        (("debug", "net.py", "--steps", "1.5"), "argument --steps: 1.5 is not a whole number"),
        (("analyze", "net.py", "--timeout", "long"), "argument --timeout: long is not a number"),
        (("verify", "net.py", "--tolerance", "5%"), "argument --tolerance: 5% is not a number"),
        (("verify", "net.py", "--minutes", "0"), "argument --minutes: 0 is not a positive number of minutes"),
        (("tune", "net.py", "--budgte", "5"), "unrecognized arguments: --budgte 5 (did you mean --budget?)"),
        (("doctor", "net.py"), "unrecognized arguments: net.py\n"),
    ],
)
def test_an_argument_that_is_wrong_is_said_with_the_usage_of_its_command(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = amptune(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"amptune {arguments[0]}: error: " in done.stderr
    assert said in done.stderr
    assert done.stderr.startswith(f"usage: amptune {arguments[0]} ")


@pytest.mark.parametrize("command", ["tune", "bench"])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("net_amptuned.py", "name the original, net.py"), ("net.py", "git apply -R net.patch takes the plan out again")],
)
def test_a_file_with_a_plan_in_it_is_not_measured(command: str, name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN.to_json("amptune 0")))
    assert amptune(tmp_path, "apply", "plan.json", "net.py", "--out", "out").returncode == 0
    (tmp_path / "out/net_amptuned.py").rename(tmp_path / "out" / name)
    done = amptune(tmp_path, command, f"out/{name}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"out/{name} has a plan of amptune in it" in done.stderr
    assert remedy in done.stderr


@pytest.mark.parametrize("command", ["tune", "bench", "analyze", "debug"])
def test_a_model_that_nobody_named_is_asked_for(command: str, tmp_path: Path) -> None:
    done = amptune(tmp_path, command)
    assert done.returncode == 2
    assert "no model is named, and there is no model.py here\n  name its file" in done.stderr


def test_a_file_that_is_named_without_its_ending_is_found(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    done = amptune(tmp_path, "debug", "net")
    assert done.returncode == 2
    assert "net does not exist\n  did you mean net.py?" in done.stderr


def test_a_script_that_reads_the_command_line_is_told_where_that_belongs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"import argparse\n{MLP}\nargparse.ArgumentParser(usage='').parse_args(['x'])\n")
    done = amptune(tmp_path, "debug", "net.py")
    assert done.returncode == 2
    assert 'belongs under `if __name__ == "__main__":`' in done.stderr


def test_a_range_that_does_not_read_is_said_before_the_model_is_captured(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    done = amptune(tmp_path, "analyze", "net.py", "--range", "ids")
    assert done.returncode == 2
    assert "--range ids does not read" in done.stderr
    assert "capturing" not in done.stderr


def test_batches_that_fail_are_said_with_the_line(tmp_path: Path) -> None:
    failing = MLP.replace("    while True:", "    raise ValueError('no data here')\n    while True:")
    (tmp_path / "net.py").write_text(failing.replace("next(train_batches())", "torch.zeros(2, 8).long(), 0"))
    done = amptune(tmp_path, "debug", "net.py")
    assert done.returncode == 3
    line = 1 + failing.splitlines().index("    raise ValueError('no data here')")
    assert f"net.py:{line}: train_batches() raised ValueError: no data here" in done.stderr


def test_an_export_into_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    plans.write(tmp_path, "bf16")
    done = amptune(tmp_path, "export", "plan.json", "--to", "jax", "-o", "nowhere/policy.py")
    assert done.returncode == 2
    assert "cannot write nowhere/policy.py: nowhere does not exist" in done.stderr


def test_the_command_that_an_export_names_writes_the_model_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    plan = plans.write(tmp_path / "runs", "bf16")
    model = tmp_path / json.loads(plan.read_text())["model"]["target"]
    (plan.parent / "net.py").rename(model)
    done = amptune(tmp_path, "export", "runs/plan.json", "--to", "pytorch")
    command = done.stderr.partition("`amptune ")[2].partition("`")[0]
    assert command == f"apply runs/plan.json {model.name} --out runs"
    assert amptune(tmp_path, *command.split()).returncode == 0
    assert (tmp_path / "runs/net_amptuned.py").is_file()


def test_something_else_than_an_optimizer_is_refused_with_what_to_return(tmp_path: Path) -> None:
    own = "def make_optimizer(params):\n    return [torch.optim.SGD(params, 0.1)]\n"
    (tmp_path / "net.py").write_text(f"{MLP}\n\n{own}")
    write_plan(tmp_path)
    done = amptune(tmp_path, "verify", "net.py", "--plan", "plan.json", "--steps", "5", "--device", "cpu")
    assert (done.returncode, done.stdout) == (3, "")
    assert "make_optimizer(params) returned list, not a torch.optim.Optimizer" in done.stderr
    assert "return one optimizer for all parameters" in done.stderr
