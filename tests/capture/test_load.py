"""Which model, batch and loss a target text stands for."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amptune.capture import TargetSpec, load_target
from amptune.errors import TargetError
from tests.capture.conftest import Load

NET = """
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return self.fc(x)


class Net(nn.Module):
    def __init__(self, width: int = 8, depth=2):
        super().__init__()
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])

    def forward(self, x):
        return self.blocks(x)
"""
FUNCTIONS = """
def make_model(depth: int = 1):
    return Net(6, depth)


def make_batch():
    return torch.ones(4, 6), torch.zeros(4, 6)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])


def evaluate(model):
    return 1.0
"""


def test_functions_come_first(load: Load) -> None:
    target = load(NET + FUNCTIONS)
    assert (target.kind, target.name, target.has_loss) == ("functions", "make_model", True)
    model, batch = target.make_model(), target.make_batch()
    assert target.loss(target.call(model, batch), batch).shape == ()
    assert target.evaluate is not None
    assert (target.make_optimizer, target.train_batches) == (None, None)
    assert len(target.source_sha256) == 64


def test_the_class_that_no_other_class_uses_is_the_model(load: Load) -> None:
    target = load(NET, inputs=("3x8",))
    assert (target.kind, target.name, target.has_loss) == ("class", "Net", False)
    assert len(target.make_model().blocks) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("class FocalLoss(nn.Module):\n    def forward(self, x): return x\n", "Net"),
        (("class Base(nn.Module):\n    pass\nclass Top(Base):\n    def __init__(self):\n        super().__init__()\n"
         "        self.net = Net()\n    def forward(self, x): return self.net(x)\n"), "Top"),
        (("def build():\n    return Net()\nclass Top(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
         "        self.net = build()\n    def forward(self, x): return self.net(x)\n"), "Top"),
        ("class Config:\n    net: type[Net] = None\n", "Net"),
    ],
    ids=["a loss", "a base without forward", "use through a function", "use in an annotation"],
)  # fmt: skip
def test_which_class_is_the_model(extra: str, expected: str, load: Load) -> None:
    assert load(NET + extra, inputs=("3x8",)).name == expected


def test_several_models_are_listed(load: Load) -> None:
    with pytest.raises(TargetError, match="several models: Net, Other") as caught:
        load(NET + "class Other(Net): pass\n", inputs=("3x8",))
    assert "model.py:Other" in str(caught.value)


def test_a_named_class_function_or_instance(load: Load) -> None:
    text = NET + "def small(width=4): return Net(width, 1)\nready = Net(5, 1)\n"
    assert load(text, name="Block", inputs=("3x8",), arguments={"width": "8"}).kind == "class"
    assert load(text, name="small", inputs=("3x4",)).make_model().blocks[0].fc.in_features == 4  # type: ignore[index]
    target = load(text, name="ready", inputs=("3x5",))
    assert target.kind == "callable"
    assert target.make_model() is not target.make_model()


def test_a_callable_that_gives_model_and_batch(load: Load) -> None:
    target = load(NET + "def both(): return Net(4), {'x': torch.ones(2, 4)}\n", name="both")
    batch = target.make_batch()
    assert target.call(target.make_model(), batch).shape == (2, 4)
    assert type(batch["x"]) is torch.Tensor


def test_a_package_callable() -> None:
    spec = TargetSpec("torch.nn:Linear", {"in_features": "6", "out_features": "4"}, ("3x6",))
    target = load_target(spec)
    assert (target.path, target.kind, target.source_sha256) == (None, "callable", "")
    assert target.call(target.make_model(), target.make_batch()).shape == (3, 4)


def test_partial_functions_are_completed(load: Load) -> None:
    target = load(NET + "def make_batch(): return torch.ones(2, 8), None\n")
    assert (target.kind, target.name) == ("class", "Net")
    assert target.make_batch()[0].shape == (2, 8)


def test_a_guessed_batch_has_no_targets_for_the_loss(load: Load) -> None:
    target = load(NET + "def loss_fn(output, batch): return F.mse_loss(output, batch[1])\n")
    assert not target.has_loss
    assert any("loss_fn is left out" in note for note in target.notes)


def test_arguments_reach_functions_and_classes(load: Load) -> None:
    assert len(load(NET, inputs=("3x8",), arguments={"depth": "5"}).make_model().blocks) == 5  # type: ignore[arg-type]
    assert len(load(NET + FUNCTIONS, arguments={"depth": "3"}).make_model().blocks) == 3  # type: ignore[arg-type]


def test_a_configuration_object_is_built_with_its_defaults(load: Load) -> None:
    text = """
    @dataclasses.dataclass
    class Settings:
        width: int = 4
        depth: int = 2

    class Net(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(config.width, config.width) for _ in range(config.depth)))

        def forward(self, x):
            return self.layers(x)
    """
    target = load(text, arguments={"depth": "3"}, inputs=("2x4",))
    assert len(target.make_model().layers) == 3  # type: ignore[arg-type]
    assert target.notes == ["Net was built with config=Settings(depth=3)"]


def test_the_configuration_that_a_class_names_is_taken_where_the_file_has_several(load: Load) -> None:
    text = """
    @dataclasses.dataclass
    class Settings:
        width: int = 4

    @dataclasses.dataclass
    class Output:
        logits: object = None

    class Net(nn.Module):
        config_class = Settings

        def __init__(self, config):
            super().__init__()
            self.fc = nn.Linear(config.width, config.width)

        def forward(self, x):
            return Output(self.fc(x))
    """
    target = load(text, inputs=("2x4",))
    assert target.notes == ["Net was built with config=Settings()"]


def test_a_spec_reloads_the_same_target_in_another_process(load: Load) -> None:
    target = load(NET + FUNCTIONS)
    spec = pickle.loads(pickle.dumps(target.spec))
    assert load_target(spec).source_sha256 == target.source_sha256


def test_replaced_source_runs_in_place_of_the_file(write: Callable[..., Path]) -> None:
    path = write(NET + FUNCTIONS)
    source = path.read_text()
    target = load_target(TargetSpec(str(path)), source=source.replace("Net(6, depth)", "Net(6, 4)"))
    assert len(target.make_model().blocks) == 4  # type: ignore[arg-type]
    assert target.source_sha256 == load_target(TargetSpec(str(path))).source_sha256


def test_prints_of_the_model_file_stay_off_stdout(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("print('loading')\n" + NET + FUNCTIONS).make_model()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading\n")


def test_modules_are_importable_under_a_stable_name(load: Load) -> None:
    target = load(NET + FUNCTIONS)
    assert sys.modules[target.module.__name__] is target.module
    assert dataclasses.is_dataclass(target.spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has neither make_model() nor"),
        ("def f(:\n", "not valid Python"),
        ("import missing_package\n", "No module named 'missing_package'"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        (("class Net(nn.Module):\n    def __init__(self, width: int, name):\n        super().__init__()\n"
         "    def forward(self, x): return x\n"), "width: int, name"),
        ("class Net(nn.Module):\n    pass\n", "Net has no forward()"),
        ("class Net(nn.Module):\n    def forward(self, x, y): return x\n", "Net.forward(x, y)"),
    ],
    ids=["no model", "syntax", "import", "exit", "required arguments", "no forward", "two inputs"],
)  # fmt: skip
def test_a_file_that_gives_no_model_says_why(text: str, message: str, load: Load) -> None:
    with pytest.raises(TargetError) as caught:
        load(text)
    assert message in str(caught.value)
    assert "model.py" in str(caught.value) or "Net" in str(caught.value)


def test_what_is_missing_is_named_with_the_lines_that_supply_it(load: Load) -> None:
    with pytest.raises(TargetError) as caught:
        load("x = 1\n")
    for name in ("def make_model():", "def make_batch():", "def loss_fn(output, batch):"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{tmp}/missing.py", "does not exist"),
        ("{tmp}", "is a folder"),
        ("{tmp}/model.txt", "is not a Python file"),
        ("{tmp}/binary.py", "is not Python text"),
        ("{tmp}/model.py:Other", "has no model called 'Other'; its models are Net"),
        ("no_such_package.models:Net", "cannot import no_such_package.models"),
        ("torch.nn:Nothing", "does not exist"),
        ("torch:float32", "is not callable"),
    ],
)
def test_a_text_that_names_nothing_says_so(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    (tmp_path / "model.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    with pytest.raises(TargetError) as caught:
        load_target(TargetSpec(text.format(tmp=tmp_path)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ("def make_model(): return 3\ndef make_batch(): return torch.ones(1)", "make_model() returned an int"),
        ("def make_model(): raise ValueError('no weights')\ndef make_batch(): return torch.ones(1)", "no weights"),
        ("def make_model(): return Net()\ndef make_batch(): pass", "make_batch() returned None"),
        ("def make_model(): return Net()\ndef make_batch(): return [1, 2]", "make_batch() returned a list"),
        ("def make_model(): return Net()\ndef make_batch(): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_functions_that_fail_are_named(functions: str, message: str, load: Load) -> None:
    target = load(NET + functions)
    with pytest.raises(TargetError) as caught:
        (target.make_model(), target.make_batch())
    assert message in str(caught.value)


def test_the_users_line_is_in_the_message(write: Callable[..., Path]) -> None:
    path = write(NET + "def make_model():\n    x = 1\n    raise ValueError('no weights')\ndef make_batch(): return 1\n")
    line = path.read_text().splitlines().index("    raise ValueError('no weights')") + 1
    with pytest.raises(TargetError, match=f"model.py:{line}: "):
        load_target(TargetSpec(str(path))).make_model()
