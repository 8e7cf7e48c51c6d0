"""AMP505: a Lightning Trainer is set up with the precision arguments of Lightning 1."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.settings_file import Section, SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import Argument, Arguments, dict_items, keyword_arguments

_PACKAGES = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric",
             "lightning.pytorch.trainer", "pytorch_lightning.trainer", "lightning.fabric.fabric")  # fmt: skip
_MAKERS = tuple(f"{package}.{cls}" for package in _PACKAGES for cls in ("Trainer", "Fabric"))
_COMMAND_LINES = tuple(
    f"{package}.LightningCLI" for package in ("lightning.pytorch.cli", "pytorch_lightning.cli", "lightning.cli")
)
_MODES = {16: "16-mixed", "16": "16-mixed", "bf16": "bf16-mixed"}
_REMOVED = ("amp_backend", "amp_level")
# Arguments that Lightning 2 removed: with one of these the call is written for Lightning 1.
_LIGHTNING_1 = frozenset(
    {"gpus", "num_processes", "tpu_cores", "ipus", "auto_select_gpus", "auto_lr_find", "auto_scale_batch_size",
     "checkpoint_callback", "progress_bar_refresh_rate", "weights_summary", "resume_from_checkpoint", "track_grad_norm",
     "distributed_backend", "truncated_bptt_steps", "move_metrics_to_cpu", "weights_save_path"}
)  # fmt: skip
_IS_OLD = "Lightning 2 has 16-mixed and bf16-mixed (and 16-true, bf16-true for the parameters)"


class LightningLegacyPrecision(SourceRule):
    """A Lightning Trainer gets a precision in the spelling of Lightning 1.

    ## What it does
    Flags `precision=16`, `"16"` and `"bf16"`, and the removed `amp_backend` and `amp_level`, passed to `Trainer` or
    `Fabric` of Lightning, or written in the YAML file of its command line. Beside arguments that only Lightning 1 has
    (`gpus=`), `precision=16` is right for that version and reported as info.

    ## Why is this bad
    16 may mean autocast or half parameters, which are different trainings; Lightning 2 takes it as "16-mixed" and warns
    on each start. `amp_backend` and `amp_level` belonged to apex and are a `TypeError` there.

    ## Example
    ```python
    import lightning as L
    trainer = L.Trainer(precision=16)
    ```

    ## Use instead
    ```python
    import lightning as L
    trainer = L.Trainer(precision="16-mixed")
    ```

    ## Fix safety
    Safe: Lightning 2 makes the same replacement itself, and there is only one backend left to choose.

    ## References
    - https://lightning.ai/docs/pytorch/stable/common/precision.html
    - https://lightning.ai/docs/pytorch/stable/upgrade/from_1_9.html
    """

    code = "AMP505"
    name = "lightning-legacy-precision"
    severity = Severity.WARNING
    keywords = (b"precision=", b"precision:", b'precision":', b"precision':", b"amp_backend", b"amp_level")

    INVALID = (
        Example(
            "a number",
            """\
import pytorch_lightning as pl

trainer = pl.Trainer(accelerator="gpu", precision=16)  # <- AMP505@41
""",
            fixed="""\
import pytorch_lightning as pl

trainer = pl.Trainer(accelerator="gpu", precision="16-mixed")
""",
        ),
        Example(
            "by an option, in Fabric, with a backend",
            """\
from lightning import Trainer
from lightning.fabric import Fabric

def make(args):
    trainer = Trainer(
        precision=16 if args.amp else 32,  # <- AMP505@9
        amp_backend="native",  # <- AMP505@9
    )
    return trainer, Fabric(precision="bf16")  # <- AMP505
""",
            fixed="""\
from lightning import Trainer
from lightning.fabric import Fabric

def make(args):
    trainer = Trainer(
        precision="16-mixed" if args.amp else 32,
    )
    return trainer, Fabric(precision="bf16-mixed")
""",
        ),
        Example(
            "through a dict, and written for Lightning 1",
            """\
from pytorch_lightning import Trainer

settings = {"precision": 16, "max_epochs": 3}  # <- AMP505@13
trainer = Trainer(**settings)
old = Trainer(gpus=2, precision=16)  # <- AMP505
""",
        ),
        Example(
            "in the YAML file of the command line",
            """\
trainer:
  accelerator: gpu
  precision: 16  # <- AMP505@3
  amp_level: O2  # <- AMP505@3
""",
            path="config.yaml",
            fixed="""\
trainer:
  accelerator: gpu
  precision: 16-mixed
""",
        ),
    )
    VALID = (
        Example(
            "present spellings",
            """\
import lightning as L

L.Trainer(precision="16-mixed")
L.Trainer(precision="bf16-true")
L.Trainer(precision=32)
L.Trainer(precision="64")
""",
        ),
        Example(
            "decided by the caller",
            """\
from lightning.pytorch import Trainer

def make(precision):
    return Trainer(precision=precision)
""",
        ),
        Example(
            "another class",
            """\
import decimal
import lightning as L
from project import Trainer

trainer = Trainer(precision=16, amp_backend="native")
context = decimal.Context(prec=16)
""",
        ),
        Example(
            "another program's file",
            """\
output:
  precision: 16
  columns: 4
""",
            path="report.yaml",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of Trainer and Fabric."""
        for call, arguments in _trainer_arguments(source):
            precision = arguments.get("precision")
            if precision is not None:
                yield from self._precision(source, precision, arguments)
            for name in _REMOVED:
                removed = arguments.get(name)
                if removed is not None:
                    edit = (edits.delete_argument(source, call, name),) if removed.in_call else ()
                    fix = Fix(f"delete {name}", edit) if edit else None
                    yield source.finding(self, removed.node, _removed(name), fix=fix)

    def _precision(self, source: SourceFile, argument: Argument, arguments: Arguments) -> Iterator[Finding]:
        old = [leaf for leaf in source.values(argument.value) if _mode(leaf)]
        if not old:
            return
        written_here = [leaf for leaf in old if leaf is argument.value or _is_inside(source, leaf, argument.value)]
        for_lightning_1 = not _LIGHTNING_1.isdisjoint(arguments.items)
        fix = None
        if argument.in_call and not for_lightning_1 and len(written_here) == len(old):
            new = tuple(edits.replace(source, leaf, f'"{_mode(leaf)}"') for leaf in old)
            fix = Fix(f'write "{_mode(old[0])}"', new)
        message = f"precision={source.segment(old[0])} is the spelling of Lightning 1: {_IS_OLD}"
        severity = Severity.INFO if for_lightning_1 else None
        yield source.finding(self, argument.node, message, severity=severity, fix=fix)

    def check_settings(self, settings: SettingsFile) -> Iterator[Finding]:
        """The trainer's section."""
        for section in settings.sections:
            if section.kind == "lightning" or _is_trainer(section):
                yield from self._section(settings, section)

    def _section(self, settings: SettingsFile, section: Section) -> Iterator[Finding]:
        entry = section.entries.get("precision")
        old = not _LIGHTNING_1.isdisjoint(section.entries)
        if entry is not None and not isinstance(entry.value, bool | list | dict) and entry.value in _MODES:
            mode = _MODES[entry.value]
            quoted = f'"{mode}"' if settings.path.endswith(".json") else mode
            message = f"precision {entry.value} is the spelling of Lightning 1: {_IS_OLD}"
            fix = None if old else Fix(f"write {mode}", (settings.replace_value(entry, quoted),))
            yield settings.finding(self, entry, message, severity=Severity.INFO if old else None, fix=fix)
        for name in _REMOVED:
            removed = section.entries.get(name)
            if removed is not None:
                fix = Fix(f"delete {name}", (settings.delete(removed),))
                yield settings.finding(self, removed, _removed(name), fix=fix)


def _trainer_arguments(source: SourceFile) -> Iterator[tuple[ast.Call, Arguments]]:
    """Calls that make a Trainer or Fabric, or the command line that makes one, with the arguments it gets."""
    for call in source.calls(*_MAKERS):
        yield call, keyword_arguments(source, call)
    for call in source.calls(*_COMMAND_LINES):
        defaults = source.argument(call, "trainer_defaults")
        items = dict_items(source, defaults) if defaults is not None else None
        if items:
            arguments = {name: Argument(name, value, key, in_call=False) for name, (key, value) in items.items()}
            yield call, Arguments(arguments, complete=True)


def _mode(leaf: ast.expr) -> str | None:
    """The new spelling of a constant; None for what is no old one."""
    if not isinstance(leaf, ast.Constant) or isinstance(leaf.value, bool) or not isinstance(leaf.value, int | str):
        return None
    return _MODES.get(leaf.value)


def _is_inside(source: SourceFile, node: ast.AST, outer: ast.AST) -> bool:
    return any(ancestor is outer for ancestor in source.ancestors(node))


def _removed(name: str) -> str:
    return f"{name} was removed in Lightning 2 (TypeError), torch.amp is the only backend: delete it"


def _is_trainer(section: Section) -> bool:
    """Whether a section named trainer holds an argument that was removed, beside others of a Trainer."""
    named = section.path[-1:] == ("trainer",)
    return named and any(name in section.entries for name in (*_REMOVED, "precision")) and len(section.entries) > 1
