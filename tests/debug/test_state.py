"""``--state`` and ``--batch``: the user's own failing moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amptune.capture import TargetSpec, load_target
from amptune.errors import TargetError

from .conftest import Run, part

SOURCE = part("y = torch.exp(x)")


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    return path


def failing_state() -> dict[str, torch.Tensor]:
    model = load_target(TargetSpec("model.py")).make_model()
    state = model.state_dict()
    state["part.fc.bias"] = torch.full((32,), 11.5)
    return state


def test_a_failure_of_the_checkpoint_is_found(model_file: Path, run: Run) -> None:
    assert run(SOURCE).verdict == "clean"
    torch.save(failing_state(), "ckpt.pt")
    result = run(SOURCE, state="ckpt.pt")
    assert result.findings[0].culprit.op.op == "exp"


def test_a_failure_of_the_batch_is_found(model_file: Path, run: Run) -> None:
    torch.save((torch.full((8, 32), 1e3), torch.zeros(8, dtype=torch.int64)), "batch.pt")
    result = run(SOURCE, batch="batch.pt")
    assert result.findings[0].culprit.op.op == "exp"


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_the_forms_that_training_scripts_write(model_file: Path, key: str | None, prefix: str) -> None:
    state = {prefix + name: value for name, value in failing_state().items()}
    torch.save({key: state, "step": 12000} if key else state, "ckpt.pt")
    model = load_target(TargetSpec("model.py", state="ckpt.pt")).make_model()
    assert model.get_parameter("part.fc.bias")[0] == 11.5


def test_a_checkpoint_of_another_model_names_the_difference(model_file: Path) -> None:
    state = failing_state()
    state["head.weight"] = torch.zeros(7, 32)
    del state["inp.bias"]
    torch.save(state, "ckpt.pt")
    with pytest.raises(TargetError, match=r"1 missing: inp\.bias; 1 of another shape: head\.weight is \(7, 32\) there"):
        load_target(TargetSpec("model.py", state="ckpt.pt")).make_model()


def test_objects_are_not_unpickled(model_file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), "ckpt.pt")
    with pytest.raises(TargetError, match="more than tensors"):
        load_target(TargetSpec("model.py", state="ckpt.pt")).make_model()


@pytest.mark.parametrize("content", [None, b"", b"not torch"])
def test_a_missing_or_broken_file(model_file: Path, content: bytes | None) -> None:
    if content is not None:
        Path("batch.pt").write_bytes(content)
    with pytest.raises(TargetError, match=r"batch\.pt"):
        load_target(TargetSpec("model.py", batch="batch.pt"))


def test_a_batch_without_tensors(model_file: Path) -> None:
    torch.save({"step": 3}, "batch.pt")
    with pytest.raises(TargetError, match="holds no tensor"):
        load_target(TargetSpec("model.py", batch="batch.pt"))
