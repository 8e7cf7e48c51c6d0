"""AMP502: training arguments that transformers 5 no longer has."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.settings_file import SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import keyword_arguments
from amptune_rules.source._deprecated import is_version_guarded
from amptune_rules.source._trainers import defined_fields, is_training_arguments, training_arguments, training_sections

_REMOVED = {
    "half_precision_backend": "torch.amp is the only backend",
    "fp16_backend": "torch.amp is the only backend",
    "fp16_opt_level": "the levels were those of apex, which is no longer supported",
}


class HfRemovedArg(SourceRule):
    """TrainingArguments get an argument that transformers 5 removed.

    ## What it does
    Flags `half_precision_backend`, `fp16_backend` and `fp16_opt_level`: passed to the Hugging Face `TrainingArguments`
    (or a class derived from them that does not define them itself), read from such an object, or written in a JSON or
    YAML file of training arguments.

    ## Why is this bad
    The three fields are gone since transformers 5: passing one is a `TypeError`, reading one an `AttributeError`, and a
    settings file with one is refused by `HfArgumentParser`.

    ## Example
    ```python
    from transformers import TrainingArguments
    args = TrainingArguments("out", fp16=True, fp16_opt_level="O1")
    ```

    ## Use instead
    ```python
    from transformers import TrainingArguments
    args = TrainingArguments("out", fp16=True)
    ```

    ## Fix safety
    Safe: the argument is deleted. Its default ("auto") chose torch.amp already, which is all there is now.

    ## References
    - https://github.com/huggingface/transformers/pull/41404
    - https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments
    """

    code = "AMP502"
    name = "hf-removed-arg"
    severity = Severity.ERROR
    keywords = tuple(name.encode() for name in _REMOVED)

    INVALID = (
        Example(
            "passed",
            """\
from transformers import TrainingArguments

args = TrainingArguments(
    output_dir="out",
    fp16=True,
    half_precision_backend="apex",  # <- AMP502@5
    fp16_opt_level="O1",  # <- AMP502@5
)
""",
            fixed="""\
from transformers import TrainingArguments

args = TrainingArguments(
    output_dir="out",
    fp16=True,
)
""",
        ),
        Example(
            "read",
            """\
from transformers import Trainer, TrainingArguments

def describe(args: TrainingArguments):
    return args.half_precision_backend  # <- AMP502@12
""",
        ),
        Example(
            "in a JSON file",
            """\
{
  "output_dir": "out",
  "fp16": true,
  "fp16_opt_level": "O2"  // <- AMP502@3
}
""",
            path="args.json",
            fixed="""\
{
  "output_dir": "out",
  "fp16": true
}
""",
        ),
        Example(
            "in a YAML file",
            """\
training_args:
  output_dir: out
  fp16_backend: auto  # <- AMP502@3
  bf16: true
""",
            path="train.yaml",
            fixed="""\
training_args:
  output_dir: out
  bf16: true
""",
        ),
    )
    VALID = (
        Example(
            "what is left",
            """\
from transformers import TrainingArguments

args = TrainingArguments("out", bf16=True, bf16_full_eval=True, tf32=True)
""",
        ),
        Example(
            "for an old transformers only",
            """\
import transformers
from packaging import version

extra = {}
if version.parse(transformers.__version__) < version.parse("5.0"):
    args = transformers.TrainingArguments("out", fp16=True, half_precision_backend="auto")
else:
    args = transformers.TrainingArguments("out", fp16=True)
""",
        ),
        Example(
            "a class with its own field",
            """\
from dataclasses import dataclass
from transformers import TrainingArguments

@dataclass
class MyArguments(TrainingArguments):
    fp16_opt_level: str = "O1"

args = MyArguments("out", fp16_opt_level="O2")
""",
        ),
        Example(
            "the option of a script",
            """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--fp16_opt_level", default="O1")
args = parser.parse_args()
print(args.fp16_opt_level)
""",
        ),
        Example(
            "another library's file",
            """\
name: resnet
fp16_opt_level: O1
""",
            path="model.yaml",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Arguments passed to a constructor, and fields read from an object."""
        for call in training_arguments(source):
            if is_version_guarded(source, call):
                continue
            own = defined_fields(source, call.func)
            for name, argument in keyword_arguments(source, call).items.items():
                if name not in _REMOVED or name in own:
                    continue
                edit = (edits.delete_argument(source, call, name),) if argument.in_call else ()
                fix = Fix(f"delete {name}", edit) if edit else None
                yield source.finding(self, argument.node, _message(name), fix=fix)
        yield from self._reads(source)

    def _reads(self, source: SourceFile) -> Iterator[Finding]:
        for node in source.nodes(ast.Attribute):
            if node.attr not in _REMOVED or not isinstance(node.ctx, ast.Load) or is_version_guarded(source, node):
                continue
            cls = _class_of_object(source, node.value)
            if cls is not None and is_training_arguments(source, cls) and node.attr not in defined_fields(source, cls):
                yield source.finding(self, node, _message(node.attr))

    def check_settings(self, settings: SettingsFile) -> Iterator[Finding]:
        """Keys of the removed fields beside others of training arguments."""
        for section in training_sections(settings):
            for name in _REMOVED:
                entry = section.entries.get(name)
                if entry is not None:
                    fix = Fix(f"delete {name}", (settings.delete(entry),))
                    yield settings.finding(self, entry, _message(name), fix=fix)


def _message(name: str) -> str:
    return f"{name} was removed in transformers 5 ({_REMOVED[name]}): delete it"


def _class_of_object(source: SourceFile, node: ast.expr) -> ast.expr | None:
    """The class of an object that is made, or annotated, in this file."""
    leaves = source.values(node)
    if len(leaves) != 1:
        return None
    if isinstance(leaves[0], ast.Call):
        return leaves[0].func
    bindings = source.bindings(leaves[0])
    if len(bindings) == 1 and isinstance(bindings[0].node, ast.arg | ast.AnnAssign):
        return bindings[0].node.annotation
    return None
