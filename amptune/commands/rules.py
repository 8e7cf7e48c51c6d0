"""``amptune rules``: all rules, and where each came from."""

from __future__ import annotations

import argparse
import json
import sys

from amptune.config import load_config
from amptune.core.registry import LoadedRule, load_rules
from amptune.core.rule import GraphRule
from amptune.lint.local_rules import load_source_rules


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``rules``."""
    parser.add_argument("--list", action="store_true", help="list the rules (what the command does anyway)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the list (default: text)")


def run(args: argparse.Namespace) -> int:
    """Print the list; the exit code is 0."""
    rules = all_rules()
    if args.format == "json":
        sys.stdout.write(json.dumps([_describe(rule) for rule in rules], indent=1) + "\n")
        return 0
    width = max((len(rule.cls.name) for rule in rules), default=0)
    for rule in rules:
        cls = rule.cls
        fix = "fix" if cls.has_fix() else "   "
        default = "" if cls.default_enabled else "  (off by default)"
        print(f"{rule.code:8s} {cls.name:{width}s}  {cls.severity!s:8s} {fix}  {rule.origin}{default}")
    return 0


def all_rules() -> list[LoadedRule]:
    """Source and graph rules of every pack, and the project's own, by code.

    Raises:
        ConfigError: a rule does not load.
    """
    config = load_config()
    graph = [rule for rule in load_rules() if issubclass(rule.cls, GraphRule)]
    return sorted([*load_source_rules(config.rule_paths, config.root), *graph], key=lambda rule: rule.code)


def _describe(rule: LoadedRule) -> dict[str, object]:
    cls = rule.cls
    return {
        "code": rule.code,
        "name": cls.name,
        "severity": str(cls.severity),
        "kind": "graph" if issubclass(cls, GraphRule) else "source",
        "fix": cls.has_fix(),
        "default": cls.default_enabled,
        "origin": rule.origin,
        "summary": (cls.__doc__ or "").strip().partition("\n")[0],
    }
