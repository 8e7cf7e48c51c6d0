"""Training arguments of the Hugging Face Trainer: which calls make them, which settings sections hold them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.settings_file import Section, SettingsFile
from amptune.lint.source import SourceFile

_PACKAGES = ("transformers", "trl", "sentence_transformers", "unsloth", "optimum", "adapters")
_TRL = frozenset(
    {"SFTConfig", "DPOConfig", "KTOConfig", "ORPOConfig", "CPOConfig", "RewardConfig", "GRPOConfig", "RLOOConfig",
     "OnlineDPOConfig", "BCOConfig", "GKDConfig", "PRMConfig", "NashMDConfig", "XPOConfig"}
)  # fmt: skip
# Keys that only the settings of a training run have.
_KEYS = frozenset(
    {"output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "learning_rate",
     "gradient_checkpointing", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "save_strategy", "eval_strategy",
     "evaluation_strategy", "logging_steps", "save_steps", "max_steps", "gradient_accumulation_steps", "weight_decay",
     "num_epochs", "micro_batch_size", "optim", "max_grad_norm", "overwrite_output_dir", "do_train", "report_to"}
)  # fmt: skip
_DEPTH = 4


def training_arguments(source: SourceFile) -> list[ast.Call]:
    """Calls that make TrainingArguments of transformers, or of a class that is certainly derived from them."""
    return [call for call in source.nodes(ast.Call) if is_training_arguments(source, call.func)]


def is_training_arguments(source: SourceFile, cls: ast.expr, depth: int = 0) -> bool:
    """Whether the expression names such a class."""
    if any(_is_known(name) for name in source.qualified(cls)):
        return True
    local = local_class(source, cls)
    return (
        local is not None and depth < _DEPTH and any(is_training_arguments(source, b, depth + 1) for b in local.bases)
    )


def _is_known(name: str) -> bool:
    package, _, _ = name.partition(".")
    last = name.rpartition(".")[2]
    return package in _PACKAGES and (last.endswith("TrainingArguments") or (package == "trl" and last in _TRL))


def local_class(source: SourceFile, cls: ast.expr) -> ast.ClassDef | None:
    """The class of this file that a name stands for."""
    bindings = source.bindings(cls) if isinstance(cls, ast.Name) else []
    node = bindings[0].node if len(bindings) == 1 else None
    return node if isinstance(node, ast.ClassDef) else None


def defined_fields(source: SourceFile, cls: ast.expr) -> set[str]:
    """Fields that classes of this file, the named one and its bases, define themselves."""
    local = local_class(source, cls)
    if local is None:
        return set()
    own: set[str] = set()
    for item in local.body:
        match item:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.FunctionDef(name=name):
                own.add(name)
            case ast.Assign(targets=targets):
                own |= {target.id for target in targets if isinstance(target, ast.Name)}
    return own.union(*(defined_fields(source, base) for base in local.bases if base is not cls))


def training_sections(settings: SettingsFile) -> Iterator[Section]:
    """Sections of a settings file that hold training arguments, by one key that only they have."""
    for section in settings.sections:
        if section.kind == "training_arguments" or section.entries.keys() & _KEYS:
            yield section
