"""AMP504: a switch of a DeepSpeed configuration is a string."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.settings_file import Entry, SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import is_dict_call, known_items
from amptune_rules.source._deepspeed import PRECISION_BLOCKS, config_dicts, flag


class DeepspeedStringBool(SourceRule):
    """A switch in a DeepSpeed configuration is a string, "true" or "false".

    ## What it does
    Flags "true" and "false" in quotes as the value of `enabled`, and of any key of the `fp16`, `bf16`, `torch_autocast`
    and `amp` blocks, in DeepSpeed configurations: JSON, YAML and dicts in Python.

    ## Why is this bad
    A string that is not empty is true: "false" switches fp16 on wherever the value is only tested (DeepSpeed before its
    typed configuration, its `torch_autocast` and `amp` blocks, the integration of transformers). "true" is not equal to
    `True` either, so transformers says that the configuration and the training arguments mismatch, and raises.

    ## Example
    ```json
    {
      "train_batch_size": 32,
      "fp16": {"enabled": "false"}
    }
    ```

    ## Use instead
    ```json
    {
      "train_batch_size": 32,
      "fp16": {"enabled": false}
    }
    ```

    ## Fix safety
    Safe: the quotes go, and the switch means what it says.

    ## References
    - https://www.deepspeed.ai/docs/config-json/
    """

    code = "AMP504"
    name = "deepspeed-string-bool"
    severity = Severity.ERROR
    keywords = tuple(f"{quote}{word}{quote}".encode() for quote in "\"'" for word in ("true", "false", "True", "False"))
    requires = (b"enabled",)

    INVALID = (
        Example(
            "in JSON",
            """\
{
  "train_batch_size": 8,
  "fp16": {
    "enabled": "true",  // <- AMP504@5
    "auto_cast": "False",  // <- AMP504@5
    "loss_scale": 0
  },
  "flops_profiler": {"enabled": "false"}  // <- AMP504
}
""",
            path="ds_config.json",
            fixed="""\
{
  "train_batch_size": 8,
  "fp16": {
    "enabled": true,
    "auto_cast": false,
    "loss_scale": 0
  },
  "flops_profiler": {"enabled": false}
}
""",
        ),
        Example(
            "in Python",
            """\
config = {
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": "true"},  # <- AMP504@25
}
""",
            fixed="""\
config = {
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
}
""",
        ),
        Example(
            "in YAML",
            """\
deepspeed:
  train_batch_size: 8
  bf16:
    enabled: "true"  # <- AMP504@5
""",
            path="train.yaml",
            fixed="""\
deepspeed:
  train_batch_size: 8
  bf16:
    enabled: true
""",
        ),
    )
    VALID = (
        Example(
            "switches and auto",
            """\
{
  "train_batch_size": "auto",
  "fp16": {"enabled": "auto", "auto_cast": false},
  "bf16": {"enabled": false}
}
""",
            path="ds_config.json",
        ),
        Example(
            "strings of another program",
            """\
{"feature": {"enabled": "true"}, "verbose": "false"}
""",
            path="settings.json",
        ),
        Example(
            "strings in Python that are no configuration",
            """\
environment = {"ENABLED": "true", "fp16": "false"}
cases = {"fp16": {"name": "true"}}
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Dicts that hold a configuration."""
        for node, _ in config_dicts(source):
            for block, key, value in _members(source, node):
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and _is_switch(block, key):
                    state = flag(value.value)
                    if state is not None:
                        fix = Fix("write it without quotes", (edits.replace(source, value, str(state)),))
                        yield source.finding(self, value, _message(key, value.value, str(state)), fix=fix)

    def check_settings(self, settings: SettingsFile) -> Iterator[Finding]:
        """Sections that belong to a configuration."""
        roots = [section.path for section in settings.of_kind("deepspeed")]
        for section in settings.sections:
            inside = any(section.path[: len(root)] == root and len(section.path) > len(root) for root in roots)
            for entry in section.entries.values() if inside else ():
                if _is_switch(section.path[-1], entry.key):
                    yield from self._judge(settings, entry)

    def _judge(self, settings: SettingsFile, entry: Entry) -> Iterator[Finding]:
        state = flag(entry.value) if entry.quoted else None
        if state is not None:
            word = str(state).lower()
            fix = Fix("write it without quotes", (settings.replace_value(entry, word),))
            yield settings.finding(self, entry, _message(entry.key, entry.value, word), fix=fix)


def _members(source: SourceFile, config: ast.expr) -> Iterator[tuple[str, str, ast.expr]]:
    """Block, key and value of every entry of the blocks that are written in the configuration or in its file."""
    for name, _, value in known_items(config):
        leaves = source.values(value)
        if len(leaves) == 1 and (isinstance(leaves[0], ast.Dict) or is_dict_call(source, leaves[0])):
            for key, _, item in known_items(leaves[0]):
                yield name, key, item


def _is_switch(block: str, key: str) -> bool:
    return key == "enabled" or block in PRECISION_BLOCKS


def _message(key: str, text: str, word: str) -> str:
    return f'{key} is the string "{text}", which is true whatever it says: write {word}'
