"""``amptune explain AMP101``: the documentation of a rule, from its class."""

from __future__ import annotations

import argparse
import inspect

from amptune.commands.rules import all_rules
from amptune.core.nearest import nearest
from amptune.core.registry import LoadedRule
from amptune.core.rule import Example
from amptune.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``explain``."""
    parser.add_argument("rule", metavar="RULE", help="code or name, such as AMP101 or clip-without-unscale")


def run(args: argparse.Namespace) -> int:
    """Print the documentation; the exit code is 0, 2 for an unknown rule."""
    print(explain(find_rule(args.rule)))
    return 0


def find_rule(text: str) -> LoadedRule:
    """The rule with this code or name.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    rules = all_rules()
    for rule in rules:
        if text.upper() == rule.code or text.lower() == rule.cls.name:
            return rule
    known = [name for rule in rules for name in (rule.code, rule.cls.name)]
    near = nearest(text, known)
    hint = f"did you mean {near}?" if near else "amptune rules lists them all"
    raise UsageError(f"no rule is called {text!r}", hint=hint)


def explain(rule: LoadedRule) -> str:
    """The whole documentation of a rule, as Markdown."""
    cls = rule.cls
    fix = "has a fix" if cls.has_fix() else "no fix"
    default = "" if cls.default_enabled else ", off by default"
    parts = [
        f"# {rule.code}: {cls.name}",
        f"{str(cls.severity).capitalize()}, {fix}{default}; from {rule.origin}.",
        inspect.getdoc(cls) or "",
        "## More examples",
        "Lines marked `<-` are flagged.",
        *(_example(example) for example in (*cls.INVALID, *cls.VALID)),
    ]
    return "\n\n".join(parts)


def _example(example: Example) -> str:
    language = {"py": "python", "ipynb": "json"}.get(example.path.rpartition(".")[2], example.path.rpartition(".")[2])
    return f"### {example.name}\n\n```{language}\n{example.source.rstrip()}\n```"
