"""``amptune init`` on the real command line, and what it writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.capture.skeleton import functions_source
from amptune.errors import TargetError
from tests.capture.conftest import Load

CNN = """
class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))
"""


def amptune(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "amptune", *args], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_init_prints_functions_that_work(write: Callable[..., Path]) -> None:
    path = write(CNN)
    before = path.read_text()
    done = amptune("init", "model.py", "--arg", "classes=7", cwd=path.parent)
    assert (done.returncode, path.read_text()) == (0, before)
    assert "return Net(classes=7)" in done.stdout
    assert "--input 8x3x32x32" in done.stderr
    path.write_text(before + done.stdout)
    target = load_target(TargetSpec(str(path)))
    assert target.kind == "functions"
    found = capture(target)
    assert found.has_loss
    assert [site.id for site in found.graph] == ["conv", "#mean.0", "head", "loss_fn#cross_entropy.0"]


def test_init_writes_once(write: Callable[..., Path]) -> None:
    path = write(CNN)
    before = path.read_text()
    assert amptune("init", "model.py", "--write", cwd=path.parent).returncode == 0
    written = path.read_text()
    assert written.startswith(before)
    assert capture(load_target(TargetSpec(str(path)))).has_loss
    again = amptune("init", "model.py", "--write", cwd=path.parent)
    assert (again.returncode, path.read_text()) == (2, written)
    assert "exist already" in again.stderr
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["model.py"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("init", "missing.py"), 2, "missing.py does not exist"),
        (("init", "model.py", "--arg", "classes"), 2, "--arg 'classes' is not NAME=VALUE"),
        (
            ("init", "torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=4", "--write"),
            2,
            "needs a file",
        ),
        (("init", "model.py", "--input", "4x4"), 2, "the model does not run"),
    ],
)
def test_init_refuses_with_one_message(
    args: tuple[str, ...], code: int, message: str, write: Callable[..., Path]
) -> None:
    done = amptune(*args, cwd=write(CNN).parent)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def written(load: Load, text: str, **options: object) -> tuple[str, str]:
    target = load(text, **options)
    assert target.path is not None
    source = target.path.read_text()
    return source, functions_source(target, source)


@pytest.mark.parametrize(
    ("returned", "loss"),
    [
        ("self.fc(x)", "cross_entropy(output, batch[1])"),
        ("self.fc(x)[:, None].expand(-1, 5, -1)", "cross_entropy(output.flatten(0, 1), batch[1].flatten())"),
        ("self.fc(x)[:, 0]", "mse_loss(output, batch[1])"),
        ("(None, self.fc(x))", "cross_entropy(output[1], batch[1])"),
        ("{'logits': self.fc(x)}", "cross_entropy(output['logits'], batch[1])"),
    ],
)
def test_the_loss_fits_the_output(returned: str, loss: str, load: Load) -> None:
    text = f"""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x):
            return {returned}
    """
    source, added = written(load, text, inputs=("3x4",))
    assert loss in added
    assert capture(load((source + added).split("from torch import nn\n", 1)[1])).has_loss


def test_only_what_is_missing_is_written(load: Load) -> None:
    _, added = written(load, CNN + "def make_model(): return Net(3)\n")
    assert "def make_model" not in added
    assert "def make_batch():" in added
    assert "import torch" not in added


def test_a_model_with_its_own_loss_needs_none(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x):
            y = self.fc(x)
            return {"logits": y, "loss": y.mean()}
    """
    _, added = written(load, text, inputs=("3x4",))
    assert "loss_fn" not in added


def test_a_model_of_a_package_gets_its_imports() -> None:
    spec = TargetSpec("transformers:GPT2LMHeadModel", {"n_layer": "1", "n_embd": "32", "n_head": "2"})
    added = functions_source(load_target(spec), "")
    assert "from transformers import GPT2LMHeadModel" in added
    assert "GPT2Config(n_layer=1, n_embd=32, n_head=2)" in added
    namespace: dict[str, object] = {}
    exec(added, namespace)
    assert type(namespace["make_model"]()).__name__ == "GPT2LMHeadModel"  # type: ignore[operator]


def test_all_there_is_an_error(load: Load) -> None:
    with pytest.raises(TargetError, match="exist already"):
        written(load, CNN + "def make_model(): return Net()\ndef make_batch(): return torch.ones(1, 3, 8, 8), 1\n"
                "def loss_fn(output, batch): return output.mean()\n")  # fmt: skip
