"""Rules of one project, from the files that ``rule-paths`` names; installed packs come from the registry."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from amptune.core.registry import LoadedRule, check_rule, load_rules
from amptune.core.rule import SourceRule
from amptune.errors import ConfigError

_PREFIX = "_amptune_local_rules"


def load_source_rules(rule_paths: Sequence[str] = (), root: Path | None = None) -> list[LoadedRule]:
    """All source rules: built-in, installed packs, and those of ``rule_paths`` (relative to ``root``), by code.

    Raises:
        ConfigError: a path is missing, a file does not import, a rule is incomplete or has a code that is taken.
    """
    rules = {rule.code: rule for rule in load_rules(SourceRule)}
    for file in _files(rule_paths, root or Path.cwd()):
        for cls in _rules_in(_import(file)):
            check_rule(cls)
            if cls.code in rules:
                raise ConfigError(f"{file}: the code {cls.code} is taken by a rule of {rules[cls.code].origin}")
            rules[cls.code] = LoadedRule(cls, str(file))
    return sorted(rules.values(), key=lambda rule: rule.code)


def _files(paths: Iterable[str], root: Path) -> list[Path]:
    found: list[Path] = []
    for text in paths:
        path = root / text
        if path.is_dir():
            found += sorted(file for file in path.glob("*.py") if not file.name.startswith("_"))
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"rule-paths names {text}, which is not in {root}")
    return found


def _import(file: Path) -> ModuleType:
    name = f"{_PREFIX}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"rule file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"rule file {file} does not import: {type(error).__name__}: {error}") from error
    return module


def _rules_in(module: ModuleType) -> list[type[SourceRule]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, SourceRule) and value.__module__ == module.__name__
    ]
