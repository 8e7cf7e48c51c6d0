"""Every run starts from the same model, whatever the model keeps beside its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amptune.tune.quality.quality import judge
from amptune.tune.quality.reference import measure_reference
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.state import Attributes, set_state
from amptune.tune.running.training import training
from tests.tune.conftest import MLP, Make, copied

KEEPS_MORE = MLP.replace(
    "        self.fc2 = nn.Linear(32, 13)\n",
    """        self.fc2 = nn.Linear(32, 13)
        self.register_buffer("average", torch.zeros(16), persistent=False)
        self.register_buffer("late", None)
        self.seen = torch.zeros(1)
        self._steps, self.is_set_up = 0, False
""",
).replace(
    "        x = self.norm(self.embed(ids))\n",
    """        x = self.norm(self.embed(ids))
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.5).add_(x.mean((0, 1)))
                self.late = torch.ones(1) if self.late is None else self.late + 1
                self.seen += 1
            self._steps, self.is_set_up = self._steps + 1, True
        x = x + self.average + 0.1 * self._steps + self.seen + (0 if self.late is None else self.late)
""",
)


def test_runs_are_equal_whatever_the_model_keeps(make_bench: Make) -> None:
    bench, batches = make_bench(KEEPS_MORE)

    def losses() -> list[float]:
        with training(bench, Candidate("fp32")) as run:
            return [run.step(batch).item() for batch in batches.train]

    first = losses()
    assert losses() == first
    assert bench.model._steps == len(batches.train)
    with training(bench, Candidate("fp32")):
        assert (bench.model._steps, bench.model.is_set_up, bench.model.late) == (0, False, None)


def test_fp32_has_no_gap_to_itself_with_buffers_that_are_no_part_of_the_state(make_bench: Make) -> None:
    bench, batches = make_bench(KEEPS_MORE)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    assert judge(bench, Candidate("fp32"), batches, reference, seed=0).loss_gap == 0.0


def test_tied_weights_are_set_to_what_the_state_says() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    state = copied(model)
    set_state(model, state | {"a.weight": torch.full((3, 3), 2.0)})
    assert model["b"].weight.tolist() == [[2.0] * 3] * 3
    assert model["b"].weight is model["a"].weight


def test_a_buffer_that_grew_has_its_first_shape_again() -> None:
    model = nn.Module()
    model.register_buffer("cache", torch.zeros(2))
    state = copied(model)
    model.cache = torch.ones(5)
    set_state(model, state)
    assert model.cache.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("written", [False, True])
def test_tensors_in_attributes_that_nothing_wrote_to_stay_themselves(written: bool) -> None:
    model = nn.Linear(2, 2)
    model.table = tensor = torch.zeros(2)  # type: ignore[assignment]
    attributes = Attributes(model)
    if written:
        tensor += 1
    attributes.restore(model)
    assert (model.table is tensor) == (not written)
    assert model.table.tolist() == [0.0, 0.0]
