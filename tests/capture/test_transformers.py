"""Small transformers models of several kinds; the whole list is a benchmark."""

from __future__ import annotations

import pytest

from amptune.capture import capture
from tests.benchmarks.architectures import ARCHITECTURES
from tests.benchmarks.coverage_capture import measure, target_of

BY_NAME = {architecture.model: architecture for architecture in ARCHITECTURES}
SAMPLE = (
    "GPT2LMHeadModel", "LlamaForCausalLM", "MixtralForCausalLM", "MambaForCausalLM", "BertModel", "DebertaV2Model",
    "T5ForConditionalGeneration", "BartForConditionalGeneration", "ViTForImageClassification",
    "ResNetForImageClassification", "CLIPModel", "WhisperForConditionalGeneration", "Wav2Vec2Model",
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.mark.parametrize("name", SAMPLE)
def test_architectures_are_captured_with_all_their_products(name: str) -> None:
    row = measure(BY_NAME[name])
    assert row.error == ""
    assert row.unknown_ops == ()
    # torch's counter does not count grouped products.
    assert row.flops_ratio == pytest.approx(1.0) or name == "MixtralForCausalLM"


def test_attention_is_seen_as_training_runs_it() -> None:
    graph = capture(target_of(BY_NAME["LlamaForCausalLM"])).graph
    site = graph["model.layers.0.self_attn#scaled_dot_product_attention.0"]
    assert site.attrs["is_causal"] is True
    assert len(site.inputs) == 3  # no mask, since nothing is masked in the batch


@pytest.mark.full
def test_nearly_all_architectures_are_captured() -> None:
    rows = [measure(architecture) for architecture in ARCHITECTURES]
    running = [row for row in rows if row.runs]
    failed = {row.model: row.error for row in running if not row.captured}
    assert len(running) >= 80
    assert len(failed) <= 0.05 * len(running), failed
