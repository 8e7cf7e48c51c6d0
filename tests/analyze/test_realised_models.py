"""Predicted dtypes of whole models against a real forward under CPU autocast."""

from __future__ import annotations

import pytest

from tests.benchmarks.architectures import ARCHITECTURES
from tests.benchmarks.autocast_check import compare

BY_NAME = {architecture.model: architecture for architecture in ARCHITECTURES}
FEW = ["GPT2LMHeadModel", "LlamaForCausalLM", "BertModel", "T5ForConditionalGeneration", "ResNetForImageClassification"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_every_known_dtype_is_right(name: str) -> None:
    found = compare(BY_NAME[name])
    assert not found.error
    assert not found.wrong, found.examples
    assert found.known > 10 * found.unknown or found.known > 60


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_nearly_all_dtypes_of_all_architectures_are_right() -> None:
    results = [compare(architecture) for architecture in ARCHITECTURES]
    known, wrong = sum(each.known for each in results), sum(each.wrong for each in results)
    assert known > 10_000
    assert wrong <= 0.001 * known, [example for each in results for example in each.examples]
