"""SettingsFile: a JSON or YAML file of training settings, with positions of its keys and values."""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from amptune.core.finding import Edit, Finding, Fix, Location, Severity
from amptune.core.rule import SourceRule
from amptune.lint.json_positions import Parsed, parse_json

if TYPE_CHECKING:
    import yaml

SectionKind = Literal["deepspeed", "accelerate", "training_arguments", "lightning", "unknown"]
SUFFIXES = (".json", ".yaml", ".yml")

_NEWLINE = re.compile(r"\r\n|\r|\n")
_DEEPSPEED = frozenset(
    {"zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size", "zero_allow_untested_optimizer",
     "steps_per_print", "wall_clock_breakdown", "gradient_clipping", "gradient_accumulation_steps"}
)  # fmt: skip
_ACCELERATE = frozenset({"compute_environment", "distributed_type", "downcast_bf16", "machine_rank", "num_machines"})
_TRAINING = frozenset(
    {"output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "learning_rate",
     "gradient_checkpointing", "lr_scheduler_type", "warmup_ratio", "save_strategy", "logging_steps", "fp16_full_eval",
     "bf16_full_eval", "half_precision_backend", "fp16_backend", "fp16_opt_level", "gradient_accumulation_steps"}
)  # fmt: skip
_LIGHTNING = frozenset({"accelerator", "devices", "max_epochs", "strategy", "num_nodes", "gpus", "amp_backend"})
_MAX_DEPTH = 200
_MAX_NODES = 100_000
_YAML_SCALARS = {
    "null": None, "~": None, "": None, "true": True, "false": False, "yes": True, "no": False, "on": True, "off": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One key with its value. Spans are offsets in the text, end exclusive.

    ``value`` is a plain Python value: a dict for a nested section, a list, or a scalar. ``quoted`` says whether the
    value is a string.
    """

    path: tuple[str, ...]
    value: Any
    key_span: tuple[int, int]
    value_span: tuple[int, int]
    quoted: bool = False

    @property
    def key(self) -> str:
        """The last part of the path."""
        return self.path[-1] if self.path else ""


@dataclasses.dataclass(frozen=True)
class Section:
    """One mapping of the file, the top level (path ``()``) included."""

    path: tuple[str, ...]
    kind: SectionKind
    entries: Mapping[str, Entry]

    def value(self, key: str, default: Any = None) -> Any:
        """The plain value of a key."""
        entry = self.entries.get(key)
        return default if entry is None else entry.value


class SettingsFile:
    """A parsed JSON or YAML file. A YAML file with several documents is read up to the end of the last one.

    Raises:
        ValueError: the text is not what its name says.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._line_starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        roots = [parse_json(text)] if path.endswith(".json") else _parse_yaml(text)
        self.sections: list[Section] = [section for root in roots for section in _sections(root, ())]

    def get(self, *path: str) -> Entry | None:
        """The entry at a path of keys from the top: ``get("fp16", "enabled")``."""
        for section in self.sections:
            if section.path == path[:-1] and path[-1] in section.entries:
                return section.entries[path[-1]]
        return None

    def of_kind(self, *kinds: SectionKind) -> list[Section]:
        """Sections that hold settings of these programs, by the keys they have."""
        return [section for section in self.sections if section.kind in kinds]

    @property
    def kind(self) -> SectionKind:
        """The kind of the top level."""
        return next((section.kind for section in self.sections if section.path == ()), "unknown")

    def location(self, start: int, end: int) -> Location:
        """A place in the file from offsets."""
        line, column = self._position(start)
        end_line, end_column = self._position(end)
        return Location(self.path, line, column, end_line, end_column)

    def finding(
        self, rule: SourceRule, entry: Entry, message: str, *, severity: Severity | None = None,
        evidence: Mapping[str, Any] | None = None, fix: Fix | None = None,
    ) -> Finding:  # fmt: skip
        """A finding of ``rule`` at a key and its value (at the key alone where the value is a section)."""
        nested = isinstance(entry.value, dict | list)
        place = self.location(entry.key_span[0], entry.key_span[1] if nested else entry.value_span[1])
        return Finding(
            rule.code, rule.name, rule.severity if severity is None else severity, message, place,
            evidence=evidence or {}, fix=fix,
        )  # fmt: skip

    def replace_value(self, entry: Entry, text: str) -> Edit:
        """Write ``text`` (in the file's own syntax) in place of a value."""
        return self._edit(*entry.value_span, text)

    def delete(self, entry: Entry) -> Edit:
        """Delete a key with its value, its comma (JSON) and its line where nothing else stands on it."""
        start, end = entry.key_span[0], entry.value_span[1]
        if self.path.endswith(".json"):
            after = re.compile(r"\s*,").match(self.text, end)
            if after:
                end = after.end()
            else:
                before = re.compile(r",\s*\Z").search(self.text[:start])
                return self._edit(before.start() if before else start, end, "")
        line_start = self._line_starts[self._position(start)[0] - 1]
        rest = re.compile(r"[ \t]*(?:#[^\r\n]*)?(\r\n|\r|\n|\Z)").match(self.text, end)
        if rest and not self.text[line_start:start].strip():
            return self._edit(line_start, rest.end(), "")
        return self._edit(start, end, "")

    def _position(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def _edit(self, start: int, end: int, text: str) -> Edit:
        return Edit(*self._position(start), *self._position(end), text)


def _sections(node: Parsed, path: tuple[str, ...]) -> Iterator[Section]:
    if isinstance(node.value, list):
        for item in node.value:
            yield from _sections(item, path)
    if not isinstance(node.value, dict):
        return
    entries = {}
    for name, (key, value) in node.value.items():
        plain = _plain(value)
        quoted = isinstance(plain, str)
        entries[name] = Entry((*path, name), plain, (key.start, key.end), (value.start, value.end), quoted)
    yield Section(path, _kind(entries, path), entries)
    for name, (_, value) in node.value.items():
        yield from _sections(value, (*path, name))


def _plain(node: Parsed) -> Any:
    if isinstance(node.value, dict):
        return {name: _plain(value) for name, (_, value) in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(item) for item in node.value]
    return node.value


def _kind(entries: Mapping[str, Entry], path: tuple[str, ...]) -> SectionKind:
    keys = entries.keys()
    precision = any(isinstance(entries[key].value, dict) for key in ("fp16", "bf16") if key in keys)
    if keys & _ACCELERATE:
        return "accelerate"
    if precision or len(keys & _DEEPSPEED) >= 2 or "zero_optimization" in keys:
        return "deepspeed"
    if "precision" in keys and (keys & _LIGHTNING or path[-1:] == ("trainer",)):
        return "lightning"
    if len(keys & _TRAINING) >= 2 or path[-1:] in (("training_args",), ("training_arguments",), ("training",)):
        return "training_arguments"
    return "unknown"


def _parse_yaml(text: str) -> list[Parsed]:
    import yaml

    loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = list(yaml.compose_all(text, Loader=loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else str(problem)) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    reader = _YamlReader(text)
    return [reader.read(node, 0) for node in documents if node is not None]


class _YamlReader:
    """Turns YAML nodes into Parsed, with an end to the expansion of aliases."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self._budget = _MAX_NODES

    def _offset(self, mark: yaml.Mark) -> int:
        # The C loader counts bytes in mark.index, but characters in mark.column.
        return self._starts[min(mark.line, len(self._starts) - 1)] + mark.column

    def read(self, node: yaml.Node, depth: int) -> Parsed:
        self._budget -= 1
        if depth > _MAX_DEPTH or self._budget < 0:
            raise ValueError(
                f"nested deeper than {_MAX_DEPTH} levels, or aliases make it larger than {_MAX_NODES} values"
            )
        start, end = self._offset(node.start_mark), self._offset(node.end_mark)
        kind, value = node.id, node.value  # type: ignore[attr-defined]
        if kind == "mapping":
            members = {str(key.value): (self.read(key, depth + 1), self.read(item, depth + 1)) for key, item in value}
            return Parsed(members, start, end)
        if kind == "sequence":
            return Parsed([self.read(item, depth + 1) for item in value], start, end)
        return Parsed(_yaml_scalar(node), start, end)


def _yaml_scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return text
    if text.lower() in _YAML_SCALARS:
        return _YAML_SCALARS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
