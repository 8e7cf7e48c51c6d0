"""Finds rules: the built-in pack by name, others by the entry point group ``amptune.rules``. Loading is strict."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Sequence

from amptune.core.finding import Severity
from amptune.core.nearest import nearest
from amptune.core.rule import GraphRule, Rule, SourceRule
from amptune.errors import ConfigError

BUILTIN_PACK = "amptune_rules"
ENTRY_POINT_GROUP = "amptune.rules"
_CODE = re.compile(r"[A-Z]{1,8}\d{3}")


@dataclasses.dataclass(frozen=True)
class LoadedRule:
    """A rule class and where it came from."""

    cls: type[Rule]
    origin: str

    @property
    def code(self) -> str:
        """The rule's id, such as AMP101."""
        return self.cls.code


def load_rules(kind: type[Rule] = Rule, packs: Sequence[str] | None = None) -> list[LoadedRule]:
    """All rules of one kind (SourceRule, GraphRule or any), sorted by code.

    Args:
        kind: base class of the rules wanted; modules of other kinds are not imported from the built-in pack.
        packs: import names of rule packs; default the built-in pack and all installed ones.

    Raises:
        ConfigError: a pack does not import, a rule lacks a class attribute, two rules share a code.
    """
    names = list(packs) if packs is not None else _installed_packs()
    rules: dict[str, LoadedRule] = {}
    for pack in names:
        for cls in _rules_of(pack, kind):
            check_rule(cls)
            if (other := rules.get(cls.code)) and other.cls is not cls:
                raise ConfigError(f"rules {other.cls.__qualname__} ({other.origin}) and {cls.__qualname__} ({pack}) "
                                  f"share the code {cls.code}")  # fmt: skip
            rules[cls.code] = LoadedRule(cls, pack)
    return sorted(rules.values(), key=lambda rule: rule.code)


def select_rules(
    rules: Sequence[LoadedRule], select: Iterable[str] = (), ignore: Iterable[str] = ()
) -> list[LoadedRule]:
    """Rules picked by code or by prefix (``AMP1``); an empty ``select`` means those on by default.

    Raises:
        ConfigError: a selector that matches no rule, with the nearest code.
    """
    select, ignore = tuple(select), tuple(ignore)
    for selector in (*select, *ignore):
        check_selector(selector, rules)
    chosen = [r for r in rules if (any(map(r.code.startswith, select)) if select else r.cls.default_enabled)]
    return [rule for rule in chosen if not any(map(rule.code.startswith, ignore))]


def check_selector(selector: str, rules: Sequence[LoadedRule]) -> None:
    """Raise ConfigError unless ``selector`` is the code, or a prefix of the code, of a rule in either kind."""
    if selector and any(rule.code.startswith(selector) for rule in rules):
        return
    if selector and any(rule.code.startswith(selector) for rule in load_rules()):
        return
    near = nearest(selector, [rule.code for rule in load_rules()])
    raise ConfigError(f"no rule is called {selector!r}", hint=f"did you mean {near}?" if near else None)


def _installed_packs() -> list[str]:
    packs = [BUILTIN_PACK]
    if not _may_have_other_packs():
        return packs
    import importlib.metadata

    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
        if point.value not in packs:
            packs.append(point.value)
    return packs


def _may_have_other_packs() -> bool:
    """Whether any installed distribution names our entry point group, ours aside.

    importlib.metadata parses every distribution for this and takes longer than linting ten files, so the usual layout
    is looked at by hand first; anything unusual (an egg, a zip) gives True.
    """
    group = f"[{ENTRY_POINT_GROUP}]".encode()
    for folder in dict.fromkeys(sys.path):
        if not os.path.isdir(folder or "."):
            if folder and os.path.exists(folder) and not folder.endswith(".zip"):
                return True
            continue
        for name in os.listdir(folder or "."):
            if name.endswith((".egg", ".egg-link")):
                return True
            if name.endswith((".dist-info", ".egg-info")) and not name.startswith("amptune-"):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), "rb") as stream:
                        if group in stream.read():
                            return True
                except OSError:
                    continue  # most distributions have no entry points
    return False


def _rules_of(pack: str, kind: type[Rule]) -> list[type[Rule]]:
    try:
        root = importlib.import_module(pack)
        modules = [root]
        for info in pkgutil.walk_packages(getattr(root, "__path__", []), prefix=f"{pack}."):
            if pack == BUILTIN_PACK and not _may_hold(info.name, kind):
                continue
            modules.append(importlib.import_module(info.name))
    except Exception as error:
        raise ConfigError(f"rule pack {pack!r} does not import: {type(error).__name__}: {error}") from error
    found = []
    for module in modules:
        for value in vars(module).values():
            is_rule = inspect.isclass(value) and issubclass(value, kind) and value.__module__ == module.__name__
            if is_rule and value not in (Rule, SourceRule, GraphRule) and not value.__name__.startswith("_"):
                found.append(value)
    return found


def _may_hold(module: str, kind: type[Rule]) -> bool:
    part = module.removeprefix(f"{BUILTIN_PACK}.").split(".")[0]
    return not ((kind is SourceRule and part == "graph") or (kind is GraphRule and part == "source"))


def check_rule(cls: type[Rule]) -> None:
    """Raise ConfigError when a rule class lacks an attribute or has a malformed one."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    for attribute in ("code", "name", "severity"):
        if not hasattr(cls, attribute):
            raise ConfigError(f"rule class {where} lacks the class attribute {attribute!r}")
    if not _CODE.fullmatch(cls.code):
        raise ConfigError(f"rule class {where}: code {cls.code!r} is not LETTERS + 3 digits")
    if not isinstance(cls.severity, Severity):
        raise ConfigError(f"rule {cls.code}: severity {cls.severity!r} is not a Severity")
    if issubclass(cls, SourceRule):
        _check_keywords(cls)


def _check_keywords(cls: type[SourceRule]) -> None:
    """Raise ConfigError where the prefilter cannot read a rule's keywords."""
    if not hasattr(cls, "keywords"):
        raise ConfigError(f"rule {cls.code} lacks the class attribute 'keywords'")
    if not cls.keywords or not _is_words(cls.keywords):
        raise ConfigError(f"rule {cls.code}: keywords {cls.keywords!r} are not a tuple of bytes", hint='(b"autocast",)')
    groups = cls.requires if isinstance(cls.requires, tuple) else (None,)
    if not all(isinstance(group, bytes) or (group and _is_words(group)) for group in groups):
        raise ConfigError(f"rule {cls.code}: requires {cls.requires!r} is not a tuple of bytes, or of tuples of bytes")


def _is_words(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, bytes) and item for item in value)
