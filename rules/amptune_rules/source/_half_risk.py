"""Whether a value may be float16 where it is used: certain, likely, possible, or not at all."""

from __future__ import annotations

import ast
import dataclasses
import enum
import re

from amptune.lint.index import FUNCTIONS, last_name
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_models import half_classes
from amptune_rules.source._models import is_torch_autocast
from amptune_rules.source._precision import precision
from amptune_rules.source._ways import autocast_ways, entries

_MENTION = re.compile(r"fp16|float16|\bhalf\b|mixed_precision|autocast|GradScaler|16-mixed|\bamp\b")
_GUARD = re.compile(r"dtype|float16|fp16|bf16|\bhalf|finfo|autocast|\bamp\b|use_amp|mixed_precision|precision")


class Level(enum.IntEnum):
    """How much in a file says that the code around a node runs in float16."""

    NEVER = 0  # autocast is off there, or is bfloat16
    NONE = 1
    MENTIONED = 2  # the file speaks of 16 bits, or the dtype is chosen at run time
    FILE = 3  # the file runs models in float16, and the node is in one that it may run
    HERE = 4  # a float16 region reaches the node, or its class is made float16


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The strongest sign of float16 for a node. ``weights``: through float16 weights, and not autocast."""

    level: Level
    weights: bool = False
    why: str = ""


class Chance(enum.IntEnum):
    """How sure it is that a value is float16."""

    POSSIBLE = 1
    LIKELY = 2
    CERTAIN = 3


@dataclasses.dataclass(frozen=True)
class Risk:
    """That a value is float16 in some or every run. ``why`` reads after "is": "float16 under autocast"."""

    chance: Chance
    why: str
    evidence: Level
    fact: Fact = Fact.UNKNOWN


def half_risk(source: SourceFile, value: ast.expr) -> Risk | None:
    """The risk that the value is float16; None when it is not, by its own dtype or by where it is computed."""
    fact = precision(source, value)
    if fact is Fact.HALF:
        return Risk(Chance.CERTAIN, "float16", Level.HERE, fact)
    if fact not in (Fact.FOLLOWS, Fact.PROMOTED, Fact.UNKNOWN):
        return None
    evidence = evidence_at(source, value)
    strong = evidence.level >= (Level.HERE if fact is Fact.UNKNOWN else Level.FILE)
    if evidence.level is Level.NEVER or (strong and fact is Fact.PROMOTED and not evidence.weights):
        return None
    if strong:
        return Risk(Chance.LIKELY, f"float16 {evidence.why}", evidence.level, fact)
    return Risk(Chance.POSSIBLE, "float16 under autocast or in a half model", evidence.level, fact)


def evidence_at(source: SourceFile, node: ast.AST) -> Evidence:
    """What says that the code at the node runs in float16."""
    ways = autocast_ways(source, node)
    on = [region for region in ways if region is not None and region.enabled is not False]
    half = [region for region in on if is_half_region(source, region)]
    if half:
        line = getattr(half[0].call, "lineno", 0)
        return Evidence(Level.HERE, why=f"under the autocast of line {line}")
    weights = _half_class(source, node)
    if weights is not None:
        return Evidence(Level.HERE, True, f"after {source.segment(weights)} in line {weights.lineno}")
    if on:
        unknown = any("?" in region.dtypes for region in on)
        return Evidence(Level.MENTIONED if unknown else Level.NEVER)
    if any(ways):
        return Evidence(Level.NEVER)
    return _of_file(source, node)


def is_half_region(source: SourceFile, region: Region) -> bool:
    """Whether autocast may run in float16 there: by its dtype, or by the default of a device known at run time."""
    if "float16" in region.dtypes:
        return True
    if region.device is not None or "?" not in region.dtypes or not is_torch_autocast(source, region):
        return False
    call = region.call
    return isinstance(call, ast.Call) and not source.has_splat(call) and source.argument(call, "dtype", 1) is None


def is_guarded(source: SourceFile, node: ast.AST) -> bool:
    """Whether a test of the dtype, or of mixed precision, decides whether the node runs."""
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, FUNCTIONS):
            return _follows_guard(source, ancestor, node)
        if isinstance(ancestor, ast.If | ast.IfExp) and child is not ancestor.test:
            found = _GUARD.search(source.segment(ancestor.test))
            if found is not None:
                return True
        child = ancestor
    return False


def is_network_code(source: SourceFile, node: ast.AST) -> bool:
    """Whether the node is in a method of an ``nn.Module`` of the file, by the names of its bases."""
    cls = source.class_of(node)
    return cls is not None and is_module_class(source, cls)


def is_module_class(source: SourceFile, cls: ast.ClassDef) -> bool:
    """Whether the class is a module: a base is called one, or is a class of the file that is."""
    for base in cls.bases:
        if last_name(base).endswith(("Module", "Model", "Layer", "Block", "Net", "Loss", "Attention", "Criterion")):
            return True
    return any(is_module_class(source, base) for base in source.names.bases(cls) if base is not cls)


def mentions_half(source: SourceFile) -> bool:
    """Whether the file speaks of float16 or mixed precision at all."""
    return _MENTION.search(source.text) is not None


def _follows_guard(source: SourceFile, function: ast.AST, node: ast.AST) -> bool:
    """Whether an ``if`` on the dtype earlier in the function leaves it: what follows runs in other dtypes only."""
    statement = source.statement_of(node)
    for earlier in getattr(function, "body", ()):
        if earlier.lineno >= statement.lineno:
            return False
        leaves = isinstance(earlier, ast.If) and isinstance(earlier.body[-1], ast.Return | ast.Raise)
        if leaves and _GUARD.search(source.segment(earlier.test)):
            return True
    return False


def _half_class(source: SourceFile, node: ast.AST) -> ast.Call | None:
    """The call that makes the node's class, or a class that may hold it, float16."""
    classes = source.shared(half_classes)
    cls = source.class_of(node)
    if not classes or cls is None or not is_module_class(source, cls):
        return None
    return classes.get(cls) or next(iter(classes.values()))


def _of_file(source: SourceFile, node: ast.AST) -> Evidence:
    """Evidence for a node that no region of the file reaches.

    A module whose forward nobody in the file calls by name may be the model that runs in a region of the file.
    """
    for entry in entries(source, source.function_of(node)):
        if entry is None or not is_network_code(source, entry) or _has_region(source, entry):
            continue
        for region in source.region_stacks.autocasts():
            if region.enabled is not False and is_half_region(source, region) and not _in_module(source, region):
                line = getattr(region.call, "lineno", 0)
                return Evidence(Level.FILE, why=f"in a model that runs under the autocast of line {line}")
    return Evidence(Level.MENTIONED if mentions_half(source) else Level.NONE)


def _in_module(source: SourceFile, region: Region) -> bool:
    return is_network_code(source, region.call)


def _has_region(source: SourceFile, function: ast.AST) -> bool:
    return any(source.function_of(region.call) is function for region in source.region_stacks.autocasts())


def is_cast_up(source: SourceFile, node: ast.AST) -> bool:
    """Whether CUDA autocast may be on where the node runs, so that ops of its float32 list are computed in float32."""
    regions = [region for region in autocast_ways(source, node) if region is not None]
    return any(region.enabled is not False and region.device != "cpu" for region in regions)
