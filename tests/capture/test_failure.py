"""One message for each way in which a model fails: which module, which line, what to change."""

from __future__ import annotations

import pytest

from amptune.capture import capture
from amptune.capture.capturing import Frontend
from amptune.errors import CaptureError, WorkError
from tests.capture.conftest import Load

MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, WIDTH), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.a(x))


def make_model(): return Net()
def make_batch(): return BATCH
def loss_fn(output, batch): return LOSS
"""
GOOD = {"WIDTH": "8", "BATCH": "torch.randn(4, 8), torch.randint(4, (4,))", "LOSS": "F.cross_entropy(output, batch[1])"}


@pytest.mark.parametrize("frontends", [["export"], ["record-fake"], ["record-real"], None])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"WIDTH": "20"}, ["b (torch.nn.Linear)", "4x20 float32", "4x20 and 8x4", "model.py:15", "make_batch()"]),
        ({"BATCH": "torch.randn(4, 9), torch.randint(4, (4,))"}, ["a (torch.nn.Linear)", "4x9 float32", "--input"]),
        ({"BATCH": "{'inputs': torch.randn(4, 8)}"}, ["a dict with inputs", "forward takes x"]),
        ({"LOSS": "F.cross_entropy(output, batch[1], reduction='none')"}, ["shape (4,)", "loss.mean()"]),
        ({"LOSS": "None"}, ["loss_fn(output, batch) returned None"]),
        ({"LOSS": "output.missing"}, ["loss_fn(output, batch) failed", "model.py:20", "AttributeError"]),
    ],
    ids=["layers", "batch", "keys", "vector loss", "no loss", "loss raises"],
)
def test_failures_are_explained(
    changed: dict[str, str], expected: list[str], frontends: list[str] | None, load: Load
) -> None:
    text = MODEL
    for name, value in (GOOD | changed).items():
        text = text.replace(name, value)
    target = load(text)
    with pytest.raises(WorkError) as caught:
        capture(target, **({} if frontends is None else {"frontends": frontends}))
    assert caught.value.exit_code == 3
    for part in expected:
        if frontends == ["record-real"] or part != "4x20 and 8x4":
            assert part in str(caught.value)


def test_a_forward_that_exits_or_recurses_is_explained(load: Load) -> None:
    for line, message in (("raise SystemExit(2)", "SystemExit: 2"), ("return self.forward(x)", "RecursionError")):
        text = f"class Net(nn.Module):\n    def forward(self, x):\n        {line}\n"
        with pytest.raises(CaptureError, match=message):
            capture(load(text, inputs=("2x2",)))


def test_prints_of_a_forward_stay_off_stdout(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    text = "class Net(nn.Module):\n    def forward(self, x):\n        print('running')\n        return x.exp()\n"
    capture(load(text, inputs=("2x2",)))
    assert capsys.readouterr().out == ""


def test_a_model_in_eval_mode_is_judged_in_train_mode_and_that_is_said(load: Load) -> None:
    text = """
    def make_model():
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()

    def make_batch():
        return torch.randn(2, 4), None
    """
    found = capture(load(text))
    assert "1" in found.graph
    assert any("eval mode" in note for note in found.notes)


def test_layerdrop_is_switched_off_and_said(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layerdrop = 0.9
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

        def forward(self, x):
            for layer in self.layers:
                if not (self.training and torch.rand(()) < self.layerdrop):
                    x = layer(x)
            return x
    """
    found = capture(load(text, inputs=("2x4",)))
    assert sum(site.op == "linear" for site in found.graph) == 8
    assert any("layerdrop" in note for note in found.notes)


def test_a_row_that_a_table_has_not_is_named_with_its_size(load: Load) -> None:
    """Positions that the forward counts: the batch is to be shorter, not its numbers smaller."""
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(100, 8), nn.Embedding(16, 8)

        def forward(self, ids):
            return self.words(ids) + self.places((ids != 0).long().cumsum(1))
    """
    with pytest.raises(WorkError) as caught:
        capture(load(text, inputs=("2x20:int64:99",)), frontends=["record-real"])
    assert "places (torch.nn.Embedding)" in str(caught.value)
    assert "and the table has 16: " in str(caught.value)
    assert "sequences shorter" in str(caught.value)


@pytest.mark.parametrize("frontend", ["record-fake", "record-real"])
def test_a_row_below_zero_is_named(frontend: Frontend, load: Load) -> None:
    """As where -1 stands for what is padded: smaller indices would not help."""
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(100, 8)

        def forward(self, ids):
            return self.words(ids - 1)
    """
    with pytest.raises(WorkError) as caught:
        capture(load(text, inputs=("2x400:int64:9",)), frontends=[frontend])
    assert "row -1 was asked for, and rows are counted from 0" in str(caught.value)
    assert "smaller" not in str(caught.value)


def test_targets_that_a_loss_leaves_out_are_no_rows(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return F.cross_entropy(self.fc(x), torch.tensor([-100, 4]))
    """
    assert "fc" in capture(load(text, inputs=("2x8",)), frontends=["record-fake"]).graph
