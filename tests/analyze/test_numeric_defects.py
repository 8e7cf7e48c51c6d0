"""Recall and false positives on defects and their stable twins; nothing may be missed, and no twin be flagged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amptune.core.finding import Severity
from tests.analyze import stable_models
from tests.analyze.numeric_defects import PAIRS, Pair
from tests.analyze.numeric_defects_calls import CALLS
from tests.analyze.numeric_defects_held import HELD
from tests.analyze.numeric_defects_kinds import KINDS
from tests.analyze.numeric_defects_more import MORE
from tests.analyze.numeric_defects_read import READ
from tests.analyze.numeric_defects_second import SECOND
from tests.analyze.numeric_defects_unseen import UNSEEN
from tests.analyze.stable_models import BATCHES
from tests.benchmarks.numeric_defects import Outcome, file_text, findings, graphs_of, judge, table

EVERY = (*PAIRS, *MORE, *HELD, *UNSEEN, *SECOND, *CALLS, *READ)


@pytest.mark.parametrize("pair", [*EVERY, *KINDS], ids=lambda pair: pair.name)
def test_defect_is_found_and_twin_is_clean(pair: Pair, tmp_path: Path) -> None:
    asked = [outcome for outcome in judge(pair, tmp_path) if outcome.expected]
    assert asked
    assert not [outcome.number_format for outcome in asked if not outcome.found]
    assert not [outcome.blamed for outcome in asked if outcome.blamed]


def outputs_and_gradients(text: str, x: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
    """What a training step of a model file gives for an input, its bias at zero."""
    names: dict[str, Any] = {}
    exec(compile(text, "model.py", "exec"), names)
    torch.manual_seed(1)
    model = names["make_model"]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    output = model(x, t)
    names["loss_fn"](output, (x, t)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*(output if isinstance(output, tuple) else (output,)), *gradients]


@pytest.mark.full
@pytest.mark.parametrize("pair", [pair for pair in EVERY if pair.format == "fp32"], ids=lambda pair: pair.name)
def test_twin_is_stable(pair: Pair) -> None:
    """Zeros, ordinary numbers and large ones: outputs and gradients of the twin stay finite in FP32."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 64, generator=generator)
    for x in (torch.zeros(64, 64), noise, noise * 1000, torch.ones(64, 64)):
        for t in (torch.rand(64, 64, generator=generator), torch.zeros(64, 64)):
            for each in outputs_and_gradients(file_text(pair, pair.twin), x, t):
                assert torch.isfinite(each).all()


_HANDOVER = """

def make_model():
    return {name}()


def make_batch():
    return BATCHES["{name}"](), None


def run(model, batch):
    return model(*batch[0])


def loss_fn(output, batch):
    return output
"""


@pytest.mark.full
@pytest.mark.parametrize("name", BATCHES)
def test_no_warning_about_a_sound_model(name: str, tmp_path: Path) -> None:
    text = Path(stable_models.__file__).read_text(encoding="utf-8") + _HANDOVER.format(name=name)
    graph = graphs_of(text, tmp_path)
    assert graph
    for number_format in ("fp32", "fp16", "bf16"):
        assert not [str(each) for each in findings(graph, number_format) if each.severity > Severity.INFO]


def test_a_finding_names_the_ops_that_lead_to_it(tmp_path: Path) -> None:
    pair = next(pair for pair in EVERY if pair.name == "log of softmax")
    found = findings(graphs_of(file_text(pair, pair.defect), tmp_path), "fp32")
    assert [each.evidence["chain"] for each in found if each.rule == "G204"] == ["fc -> softmax -> log"]


def test_the_table_counts_what_was_asked() -> None:
    pair = PAIRS[0]
    outcomes = [Outcome(pair, "fp32", True, True, ()), Outcome(pair, "fp32", True, False, ("G204: x",)),
                Outcome(pair, "fp16", False, False, ())]  # fmt: skip
    assert "| kinds | fp32 | 2 | 1 | 2 | 1 |" in table({"kinds": outcomes}).splitlines()
    assert "| kinds | fp16 | 0 | 0 | 0 | 0 |" in table({"kinds": outcomes}).splitlines()
