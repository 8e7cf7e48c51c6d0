"""AMP501: a Trainer is told to train in float16 and in bfloat16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.settings_file import SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import Argument, keyword_arguments
from amptune_rules.source._trainers import training_arguments, training_sections

_PAIRS = (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval"))
_BF16_TESTS = frozenset({"torch.cuda.is_bf16_supported", "transformers.utils.is_torch_bf16_gpu_available"})


class HfFp16Bf16Conflict(SourceRule):
    """TrainingArguments ask for float16 and for bfloat16.

    ## What it does
    Flags `fp16=True` together with `bf16=True` (and the `_full_eval` pair) in the Hugging Face `TrainingArguments` and
    classes derived from them, and in JSON and YAML files of training arguments. Two flags that take the same value at
    run time, and a constant beside `is_bf16_supported()`, are warnings.

    ## Why is this bad
    It raises before the first step: `ValueError: At most one of fp16 and bf16 can be True, but not both`.

    ## Example
    ```python
    from transformers import TrainingArguments
    args = TrainingArguments("out", fp16=True, bf16=True)
    ```

    ## Use instead
    ```python
    from transformers import TrainingArguments
    args = TrainingArguments("out", bf16=True)
    ```

    ## Fix safety
    No fix: which of the two is meant depends on the GPU. bfloat16 from Ampere (compute capability 8.0) on,
    float16 before.

    ## References
    - https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments
    """

    code = "AMP501"
    name = "hf-fp16-bf16-conflict"
    severity = Severity.ERROR
    keywords = (b"bf16=", b"bf16:", b'bf16":', b"bf16':", b"bf16_full_eval")

    INVALID = (
        Example(
            "both set",
            """\
from transformers import Seq2SeqTrainingArguments as Arguments

args = Arguments(
    output_dir="out",
    fp16=True,
    bf16=True,  # <- AMP501@5
)
""",
        ),
        Example(
            "one option for both, and a constant beside the test of the GPU",
            """\
import torch
import transformers
from trl import SFTConfig

def make(amp):
    first = transformers.TrainingArguments("out", bf16=amp, fp16=amp)  # <- AMP501
    second = SFTConfig("out", fp16=True, bf16=torch.cuda.is_bf16_supported())  # <- AMP501, AMP604
    return first, second
""",
        ),
        Example(
            "through a dict, and the flags of the evaluation",
            """\
from dataclasses import dataclass
from transformers import TrainingArguments

@dataclass
class MyArguments(TrainingArguments):
    extra: int = 0

common = {"fp16": True, "learning_rate": 1e-4}
args = MyArguments("out", bf16=True, **common)  # <- AMP501
evaluation = MyArguments("out", fp16_full_eval=True, bf16_full_eval=True)  # <- AMP501
""",
        ),
        Example(
            "in a YAML file",
            """\
output_dir: out
learning_rate: 1.0e-4
fp16: true
bf16: true  # <- AMP501@1
""",
            path="train.yaml",
        ),
        Example(
            "in a JSON file",
            """\
{
  "output_dir": "out",
  "bf16": true,
  "fp16": true  // <- AMP501@3
}
""",
            path="args.json",
        ),
    )
    VALID = (
        Example(
            "one of them by what the GPU can do",
            """\
import torch
from transformers import TrainingArguments

native = torch.cuda.get_device_capability() >= (8, 0)
args = TrainingArguments("out", fp16=not native, bf16=native)
""",
        ),
        Example(
            "values from the command line",
            """\
from transformers import TrainingArguments

def make(options):
    return TrainingArguments("out", fp16=options.fp16, bf16=options.bf16)
""",
        ),
        Example(
            "training and evaluation in different formats",
            """\
from transformers import TrainingArguments

args = TrainingArguments("out", fp16=True, bf16=False, bf16_full_eval=True)
""",
        ),
        Example(
            "another class with such flags",
            """\
from hardware import Capabilities

gpu = Capabilities(fp16=True, bf16=True)
""",
        ),
        Example(
            "one of them in a file",
            """\
output_dir: out
fp16: false
bf16: true
""",
            path="train.yml",
        ),
        Example(
            "what a GPU can do, in a file",
            """\
{"gpu": "a100", "fp16": true, "bf16": true}
""",
            path="gpus.json",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Constructor calls with both flags."""
        for call in training_arguments(source):
            arguments = keyword_arguments(source, call)
            for first, second in _PAIRS:
                half, brain = arguments.get(first), arguments.get(second)
                if half is not None and brain is not None:
                    yield from self._judge(source, half, brain)

    def _judge(self, source: SourceFile, half: Argument, brain: Argument) -> Iterator[Finding]:
        both = f"{half.name} and {brain.name}"
        later = max((half, brain), key=lambda item: (item.in_call, item.node.lineno, item.node.col_offset))  # type: ignore[attr-defined]
        states = source.constant(half.value), source.constant(brain.value)
        if all(state is True for state in states):
            message = f"{both} are both True, which raises ValueError: keep {brain.name} on Ampere and newer GPUs"
            yield source.finding(self, later.node, message)
        elif states[0] is True and _tests_bf16(source, brain.value):
            opposite = f"{half.name}=not {source.segment(brain.value)}"
            message = f"{both} are both True where the GPU has bfloat16, which raises ValueError: set {opposite}"
            yield source.finding(self, later.node, message, severity=Severity.WARNING)
        elif not any(isinstance(state, bool) for state in states) and _same(half.value, brain.value):
            message = f"{both} take the same value, which raises ValueError when it is true: keep one of them"
            yield source.finding(self, later.node, message, severity=Severity.WARNING)

    def check_settings(self, settings: SettingsFile) -> Iterator[Finding]:
        """Sections with both flags."""
        for section in training_sections(settings):
            for first, second in _PAIRS:
                half, brain = section.entries.get(first), section.entries.get(second)
                if half is not None and brain is not None and half.value is True and brain.value is True:
                    message = f"{first} and {second} are both true, which raises ValueError: keep one of them"
                    yield settings.finding(self, max(half, brain, key=lambda entry: entry.key_span), message)


def _tests_bf16(source: SourceFile, value: ast.expr) -> bool:
    return any(
        isinstance(leaf, ast.Call)
        and any(name in _BF16_TESTS or name.endswith("is_bfloat16_supported") for name in source.qualified(leaf.func))
        for leaf in source.values(value)
    )


def _same(first: ast.expr, second: ast.expr) -> bool:
    """Whether both are the same name or attribute; calls may differ from one time to the next."""
    return isinstance(first, ast.Name | ast.Attribute) and ast.dump(first) == ast.dump(second)
