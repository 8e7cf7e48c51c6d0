"""DeepSpeed configurations, written as a dict in Python or as a section of a settings file."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from amptune.lint.fold import UNKNOWN
from amptune.lint.settings_file import Entry, Section, SettingsFile
from amptune.lint.source import SourceFile
from amptune_rules.source._arguments import dict_items, is_dict_call, known_items

# Blocks that switch a precision on, the old spelling of bf16 included.
PRECISION_BLOCKS = ("fp16", "bf16", "bfloat16", "torch_autocast", "amp")
_MODES = {"bfloat16": "bf16"}

Place = TypeVar("Place", ast.expr, Entry)


@dataclasses.dataclass(frozen=True, eq=False)
class Block(Generic[Place]):
    """A precision block of a configuration.

    ``enabled`` is None when it is decided elsewhere ("auto", a name); ``written`` says whether the key is there at all.
    """

    name: str
    enabled: bool | None
    written: bool
    place: Place

    @property
    def mode(self) -> str:
        """The block's name in its present spelling."""
        return _MODES.get(self.name, self.name)


def flag(value: object) -> bool | None:
    """The truth of a setting: also that of "true" and "false" in quotes; None for "auto" and anything else."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def config_dicts(source: SourceFile) -> Iterator[tuple[ast.expr, list[Block[ast.expr]]]]:
    """Dict literals and dict() calls that hold a precision block with ``enabled``, each with its blocks."""
    calls = [call for call in source.nodes(ast.Call) if is_dict_call(source, call)]
    for node in (*source.nodes(ast.Dict), *calls):
        blocks = dict_blocks(source, node)
        if any(block.written for block in blocks):
            yield node, blocks


def dict_blocks(source: SourceFile, node: ast.expr) -> list[Block[ast.expr]]:
    """Precision blocks of a dict literal or dict() call, in its own order."""
    items = [item for item in known_items(node) if item[0] in PRECISION_BLOCKS]
    blocks = [_block(source, name, key, value) for name, key, value in items]
    return [block for block in blocks if block is not None]


def _block(source: SourceFile, name: str, place: ast.expr, value: ast.expr) -> Block[ast.expr] | None:
    items = dict_items(source, value)
    if items is None:
        return None
    enabled = items["enabled"][1] if "enabled" in items else None
    return Block(name, _enabled(source, enabled), enabled is not None, place)


def assigned_blocks(source: SourceFile) -> Iterator[list[Block[ast.expr]]]:
    """Precision blocks that are stored one after the other: ``config["fp16"] = {"enabled": True}``.

    Those of one dict in one block of statements come together.
    """
    found: dict[tuple[ast.AST | None, str], list[Block[ast.expr]]] = {}
    for statement in source.nodes(ast.Assign):
        target = statement.targets[0]
        if not isinstance(target, ast.Subscript):
            continue
        name, value = source.constant(target.slice), statement.value
        block = None
        if name in PRECISION_BLOCKS:
            block = _block(source, name, target, value)
        elif name == "enabled" and isinstance(target.value, ast.Subscript):
            target = target.value
            name = source.constant(target.slice)
            block = Block(name, _enabled(source, value), True, target) if name in PRECISION_BLOCKS else None
        if block is not None:
            key = (source.parent(statement), source.segment(target.value))
            found.setdefault(key, []).append(block)
    yield from found.values()


def _enabled(source: SourceFile, value: ast.expr | None) -> bool | None:
    constant = source.constant(value)
    return False if value is None else None if constant is UNKNOWN else flag(constant)


def dict_zero_stage(source: SourceFile, node: ast.expr) -> int:
    """The ZeRO stage of a configuration, 0 when there is none or it is not known."""
    for name, _, value in known_items(node):
        if name == "zero_optimization":
            stage = (dict_items(source, value) or {}).get("stage")
            number = source.number(stage[1]) if stage else None
            return int(number or 0)
    return 0


def config_sections(settings: SettingsFile) -> Iterator[tuple[Section, list[Block[Entry]]]]:
    """Sections of a settings file that hold a precision block with ``enabled``, each with its blocks."""
    for section in settings.sections:
        blocks = section_blocks(section)
        if any(block.written for block in blocks):
            yield section, blocks


def section_blocks(section: Section) -> list[Block[Entry]]:
    """Precision blocks of a section, in the order of the file."""
    found = [
        Block(name, flag(entry.value.get("enabled", False)), "enabled" in entry.value, entry)
        for name, entry in section.entries.items()
        if name in PRECISION_BLOCKS and isinstance(entry.value, dict)
    ]
    return sorted(found, key=lambda block: block.place.key_span)


def section_zero_stage(section: Section) -> int:
    """The ZeRO stage of a configuration, 0 when there is none."""
    zero = section.value("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    return stage if isinstance(stage, int) else 0


def _exclude(one: str, other: str) -> bool:
    """Whether two precisions cannot both be on; torch_autocast may cast inside a model of 16-bit weights."""
    return one != other and ("amp" in (one, other) or "torch_autocast" not in (one, other))


def conflicts(blocks: Sequence[Block[Place]], zero_stage: int) -> Iterator[tuple[Place, str]]:
    """What DeepSpeed refuses to run: where, and why."""
    on = [block for block in blocks if block.enabled]
    for position, later in enumerate(on):
        earlier = next((block for block in on[:position] if _exclude(block.mode, later.mode)), None)
        if earlier is not None:
            yield later.place, f"{earlier.name} and {later.name} are both enabled"
        elif later.name == "amp" and zero_stage > 0:
            yield later.place, f"amp is enabled with ZeRO stage {zero_stage}"


def is_changed_later(source: SourceFile, node: ast.expr) -> bool:
    """Whether the file writes into the dict that a name stands for."""
    if not isinstance(node, ast.Name | ast.Attribute):
        return False
    text = source.segment(node)
    targets = [item.value for item in source.nodes(ast.Subscript) if isinstance(item.ctx, ast.Store | ast.Del)]
    calls = source.method_calls("update", "setdefault", "pop")
    targets += [call.func.value for call in calls if isinstance(call.func, ast.Attribute)]
    return any(source.segment(_base(target)) == text for target in targets)


def _base(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node
