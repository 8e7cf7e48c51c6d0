"""``amptune debug`` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .debug.conftest import line_of, part
from .inprocess import amptune
from .test_cli_tune import amptune as amptune_process

OVERFLOWS = part("x = x * 20\ny = torch.exp(x)  # BAD")


def test_text_names_the_line_and_the_cure(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OVERFLOWS)
    result = amptune_process(tmp_path, "debug", "net.py", "--dtype", "fp16", "--steps", "2")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith(f"net.py:{line_of(OVERFLOWS)}:13: overflow in the forward of step 0: exp gives inf")
    assert "cure: compute exp" in result.stdout
    assert "computed in FP32 and rounded" in result.stderr


def test_json_of_a_clean_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(part("y = torch.tanh(x)"))
    result = amptune(tmp_path, "debug", "net.py", "--dtype", "bf16", "--steps", "2", "--format", "json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["version"], data["verdict"], data["findings"], data["steps"]["run"]) == (1, "clean", [], 2)
    assert data["margins"]["activation"]["module"] in ("inp", "part.fc", "part", "head")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--dtype", "fp4"), 2, "fp4"),
        (("--state", "nowhere.pt"), 2, "nowhere.pt does not exist"),
        (("--steps", "0"), 2, "not a positive number"),
    ],
)
def test_usage(tmp_path: Path, flags: tuple[str, ...], code: int, words: str) -> None:
    (tmp_path / "net.py").write_text(OVERFLOWS)
    result = amptune(tmp_path, "debug", "net.py", *flags)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(part("y = x @ torch.ones(3, 3)  # BAD"))
    result = amptune(tmp_path, "debug", "net.py", "--steps", "2")
    assert (result.returncode, result.stdout) == (3, "")
    assert f"net.py:{line_of(part('y = x @ torch.ones(3, 3)  # BAD'))}" in result.stderr


def test_a_loss_that_does_not_run_is_said_as_in_the_other_commands(tmp_path: Path) -> None:
    text = part("y = torch.tanh(x)") + "\n\ndef loss_fn(output):\n    return output.sum()\n"
    (tmp_path / "net.py").write_text(text)
    result = amptune(tmp_path, "debug", "net.py", "--steps", "1")
    assert result.returncode == 3, result.stdout
    assert "loss_fn(output, batch) failed: TypeError" in result.stderr
    assert "the whole batch" in result.stderr


def test_what_raises_in_the_format_alone_is_said(tmp_path: Path) -> None:
    """Tensors that the model casts to BF16 itself, under autocast in FP16: no op's values are to blame."""
    source = part("y = torch.cat([x.bfloat16()[:, :1], x[:, 1:].half()], 1).float()  # BAD")
    (tmp_path / "net.py").write_text(source)
    result = amptune(tmp_path, "debug", "net.py", "--dtype", "fp16", "--steps", "2")
    assert "step 0: the model raises in fp16" in result.stderr
    assert "though it runs in FP32" in result.stderr
