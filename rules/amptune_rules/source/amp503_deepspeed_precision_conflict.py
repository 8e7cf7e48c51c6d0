"""AMP503: a DeepSpeed configuration asks for two precisions, or for another one than the program."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.fold import UNKNOWN
from amptune.lint.settings_file import Section, SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import Arguments, keyword_arguments
from amptune_rules.source._deepspeed import (
    Block,
    assigned_blocks,
    config_dicts,
    config_sections,
    conflicts,
    dict_blocks,
    dict_zero_stage,
    is_changed_later,
    section_blocks,
    section_zero_stage,
)
from amptune_rules.source._trainers import training_arguments

_REFUSED = "which DeepSpeed refuses: enable one of them"
_MODES = ("fp16", "bf16")


class DeepspeedPrecisionConflict(SourceRule):
    """A DeepSpeed configuration enables two precisions, or disagrees with the training arguments.

    ## What it does
    Flags, in JSON, YAML and dicts in Python: more than one of `fp16`, `bf16` and `amp` enabled, `amp` with ZeRO; a
    configuration whose `fp16` or `bf16` differs from that of the `TrainingArguments` or the `Accelerator` that it is
    given to; `mixed_precision` in an accelerate file that names a DeepSpeed file.

    ## Why is this bad
    Each of these raises at start-up: DeepSpeed asserts that `bfloat16 and fp16 modes cannot be simultaneously enabled`,
    transformers says that the values mismatch, accelerate that `mixed_precision` cannot be set. DeepSpeed 0.19.8 has no
    `amp` any more and refuses the block whatever stands beside it.

    ## Example
    ```json
    {
      "train_batch_size": 32,
      "fp16": {"enabled": true},
      "bf16": {"enabled": true}
    }
    ```

    ## Use instead
    ```json
    {
      "train_batch_size": 32,
      "fp16": {"enabled": "auto"},
      "bf16": {"enabled": "auto"}
    }
    ```

    ## Fix safety
    No fix: which of the two is meant cannot be told. "auto" takes the value of the training arguments.

    ## References
    - https://www.deepspeed.ai/docs/config-json/#fp16-training-options
    - https://huggingface.co/docs/transformers/main/en/deepspeed
    """

    code = "AMP503"
    name = "deepspeed-precision-conflict"
    severity = Severity.ERROR
    # A key in quotes (JSON, dicts), or one that opens a block or names a DeepSpeed file (YAML).
    keywords = (b'fp16"', b'bf16"', b"fp16'", b"bf16'", b'"amp"', b"'amp'", b"fp16:\n", b"bf16:\n", b"fp16:\r",
                b"bf16:\r", b"fp16: {", b"bf16: {", b"torch_autocast:", b"deepspeed_config_file", b"bfloat16:\n",
                b'"bfloat16":', b"16=dict(", b"16={")  # fmt: skip

    INVALID = (
        Example(
            "both enabled",
            """\
{
  "train_micro_batch_size_per_gpu": 8,
  "fp16": {"enabled": true, "loss_scale": 0},
  "zero_optimization": {"stage": 2},
  "bfloat16": {"enabled": true}  // <- AMP503@3
}
""",
            path="ds_config.json",
        ),
        Example(
            "fp16 beside bf16, apex amp with ZeRO, in Python",
            """\
import deepspeed

def start(model):
    config = {
        "bf16": {"enabled": True},
        "fp16": {"enabled": True, "loss_scale": 0},  # <- AMP503@9
    }
    apex = dict(enabled=True, opt_level="O1")
    other = {"amp": apex, "zero_optimization": {"stage": 1}}  # <- AMP503@14
    return deepspeed.initialize(model=model, config=config), other
""",
        ),
        Example(
            "another precision than the training arguments",
            """\
from transformers import TrainingArguments

DEEPSPEED = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 3}}
args = TrainingArguments("out", bf16=True, deepspeed=DEEPSPEED)  # <- AMP503@44
""",
        ),
        Example(
            "another precision than the accelerator",
            """\
from accelerate import Accelerator, DeepSpeedPlugin

plugin = DeepSpeedPlugin(hf_ds_config={"bf16": {"enabled": True}, "train_batch_size": 8})
accelerator = Accelerator(mixed_precision="fp16", deepspeed_plugin=plugin)  # <- AMP503@27
""",
        ),
        Example(
            "an accelerate file that also names a DeepSpeed file",
            """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  deepspeed_config_file: ds_config.json
mixed_precision: bf16  # <- AMP503@1
num_machines: 1
""",
            path="accelerate.yaml",
        ),
        Example(
            "training arguments with a configuration inside",
            """\
output_dir: out
learning_rate: 0.0001
bf16: true
deepspeed:
  fp16:  # <- AMP503@3
    enabled: true
  zero_optimization:
    stage: 2
""",
            path="train.yaml",
        ),
    )
    VALID = (
        Example(
            "auto",
            """\
{
  "fp16": {"enabled": "auto", "initial_scale_power": 16},
  "bf16": {"enabled": "auto"},
  "zero_optimization": {"stage": 3}
}
""",
            path="ds_config.json",
        ),
        Example(
            "one enabled, the other one written as off",
            """\
{
  "train_batch_size": 8,
  "fp16": {"enabled": false},
  "bf16": {"enabled": true},
  "amp": {"enabled": false, "opt_level": "O1"}
}
""",
            path="ds_config.json",
        ),
        Example(
            "chosen by an option",
            """\
def config(args):
    return {
        "fp16": {"enabled": args.dtype == "fp16"},
        "bf16": {"enabled": args.dtype == "bf16"},
        "zero_optimization": {"stage": 2},
    }
""",
        ),
        Example(
            "the same as the training arguments, and one that is set later",
            """\
from transformers import TrainingArguments

same = TrainingArguments("out", bf16=True, deepspeed={"bf16": {"enabled": True}, "fp16": {"enabled": False}})
config = {"fp16": {"enabled": True}}
config["fp16"]["enabled"] = "auto"
args = TrainingArguments("out", bf16=True, deepspeed=config)
""",
        ),
        Example(
            "accelerate with its own DeepSpeed settings",
            """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  gradient_accumulation_steps: 1
  zero_stage: 2
mixed_precision: bf16
""",
            path="accelerate.yaml",
        ),
        Example(
            "a table of what is enabled in experiments",
            """\
{"fp16": {"loss": 0.3}, "bf16": {"loss": 0.3}}
""",
            path="results.json",
        ),
        Example(
            "torch_autocast around a model with bfloat16 weights",
            """\
import deepspeed

def start(model):
    config = {
        "train_batch_size": 8,
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
    }
    return deepspeed.initialize(model=model, config=config)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Dicts that hold a configuration, and calls that are given one."""
        for node, blocks in config_dicts(source):
            for place, problem in conflicts(blocks, dict_zero_stage(source, node)):
                yield source.finding(self, place, f"{problem}, {_REFUSED}")
        for blocks in assigned_blocks(source):
            for place, problem in conflicts(blocks, zero_stage=0):
                yield source.finding(self, place, f"{problem}, {_REFUSED}")
        for call in training_arguments(source):
            yield from self._against_arguments(source, keyword_arguments(source, call))
        for call in source.calls("accelerate.Accelerator"):
            yield from self._against_accelerator(source, call)

    def _against_arguments(self, source: SourceFile, arguments: Arguments) -> Iterator[Finding]:
        config = arguments.get("deepspeed")
        blocks = _blocks_of(source, config.value) if config else []
        for block in blocks if config else ():
            wanted = _asked_for(source, arguments, block.mode) if block.mode in _MODES else None
            if block.written and None not in (wanted, block.enabled) and wanted is not block.enabled:
                message = _mismatch(block.mode, block.enabled, wanted)
                assert config is not None
                yield source.finding(self, config.node, message)

    def _against_accelerator(self, source: SourceFile, call: ast.Call) -> Iterator[Finding]:
        arguments = keyword_arguments(source, call)
        precision, plugin = arguments.get("mixed_precision"), arguments.get("deepspeed_plugin")
        mode = source.constant(precision.value) if precision else UNKNOWN
        for maker in source.values(plugin.value) if plugin and mode in ("fp16", "bf16", "fp8") else ():
            given = source.argument(maker, "hf_ds_config", 0) if isinstance(maker, ast.Call) else None
            other = "bf16" if mode == "fp16" else "fp16"
            if given is not None and any(b.mode == other and b.enabled for b in _blocks_of(source, given)):
                assert precision is not None
                message = f"mixed_precision is {mode}, and the DeepSpeed configuration enables {other}: set it to auto"
                yield source.finding(self, precision.node, message)

    def check_settings(self, settings: SettingsFile) -> Iterator[Finding]:
        """Configurations, and sections that hold one or name one."""
        for section, blocks in config_sections(settings):
            for place, problem in conflicts(blocks, section_zero_stage(section)):
                yield settings.finding(self, place, f"{problem}, {_REFUSED}")
        sections = {section.path: section for section in settings.sections}
        for path, section in sections.items():
            inner = sections.get((*path, "deepspeed"))
            if inner is not None:
                yield from self._against_parent(settings, section, inner)
            yield from self._accelerate(settings, section)

    def _against_parent(self, settings: SettingsFile, section: Section, inner: Section) -> Iterator[Finding]:
        for block in section_blocks(inner):
            wanted = _flag_of(section, block.mode)
            if block.written and block.enabled is not None and isinstance(wanted, bool) and wanted != block.enabled:
                yield settings.finding(self, block.place, _mismatch(block.mode, block.enabled, wanted))

    def _accelerate(self, settings: SettingsFile, section: Section) -> Iterator[Finding]:
        entry, inner = section.entries.get("mixed_precision"), section.value("deepspeed_config")
        if entry is None or not isinstance(inner, dict) or inner.get("deepspeed_config_file") in (None, "", "none"):
            return
        if entry.value in ("fp16", "bf16", "fp8"):
            message = (
                "mixed_precision beside deepspeed_config_file raises ValueError: delete it, the DeepSpeed file decides"
            )
            yield settings.finding(self, entry, message)


def _mismatch(mode: str, enabled: bool | None, wanted: bool | None) -> str:
    return (
        f"{mode} is {_word(enabled)} in the DeepSpeed configuration and {_word(wanted)} in the training arguments, "
        'which raises ValueError: set it to "auto" in the configuration'
    )


def _flag_of(section: Section, mode: str) -> object:
    """The flag of a mode in training arguments; one that is not written is off when the other one is on."""
    other = "bf16" if mode == "fp16" else "fp16"
    return section.value(mode, False if mode in _MODES and section.value(other) is True else None)


def _word(state: bool | None) -> str:
    return "on" if state else "off"


def _blocks_of(source: SourceFile, config: ast.expr) -> list[Block[ast.expr]]:
    """Precision blocks of a configuration that is one dict of this file, perhaps wrapped in HfDeepSpeedConfig."""
    if is_changed_later(source, config):
        return []
    leaves = source.values(config)
    if len(leaves) != 1:
        return []
    leaf = leaves[0]
    if isinstance(leaf, ast.Call) and any(n.endswith("HfDeepSpeedConfig") for n in source.qualified(leaf.func)):
        return _blocks_of(source, leaf.args[0]) if len(leaf.args) == 1 else []
    return dict_blocks(source, leaf)


def _asked_for(source: SourceFile, arguments: Arguments, mode: str) -> bool | None:
    """Whether training arguments ask for the mode, in training or in evaluation; None when it cannot be told."""
    states = []
    for name in (mode, f"{mode}_full_eval"):
        argument = arguments.get(name)
        value = source.constant(argument.value) if argument else False
        states.append(value if isinstance(value, bool) and (argument or arguments.complete) else None)
    if True in states:
        return True
    return None if None in states else False
