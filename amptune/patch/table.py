"""The plan as a table that a person reads: one line for a role that repeated blocks share, one per layer elsewhere."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from amptune.core.plan import Plan
from amptune.core.runtimetable import TableEntry, runtime_table
from amptune.errors import PlanError
from amptune.patch.spec import PatchSpec

Value = tuple[tuple[str, str | int], ...]
"""What the table says of a site, as items in one order: hashable, and equal where two sites are treated alike."""
_MAX_INDICES = 4
_NUMBER = re.compile(r"\d+$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        key: a module path or a glob, ``*`` for one part of a path.
        value: keys and values as the runtime reads them.
        why: the reason that the plan gives, where all its sites have the same.
    """

    key: str
    value: Value
    why: str = ""


def table_of(plan: Plan, spec: PatchSpec) -> list[Entry]:
    """The table for the plan's module sites and autocast regions, in the plan's order.

    A glob stands only where every module that it matches is planned and most agree; those that do not agree follow it
    by their full path, which beats the glob.
    """
    values = _with_shared(_values(plan), spec)
    whys = {name.partition("#")[0]: site.why for name, site in plan.sites.items()}
    known = [*spec.modules, *spec.tensors] or list(values)
    entries: list[Entry] = []
    left = dict.fromkeys(values)
    for path in values:
        if path not in left:
            continue
        group = _widest_group(path, values, known, left)
        entries.extend(_entries(group, values, whys))
        for member in group.members:
            del left[member]
    return [entry for entry in entries if entry.key not in spec.shared or _in_a_glob(entry.key, entries)]


def resolve(entries: Iterable[Entry], paths: Iterable[str]) -> dict[str, Value]:
    """What the runtime makes of the table: an exact path beats a glob, a longer glob a shorter one."""
    paths = list(paths)
    found: dict[str, Value] = {}
    for entry in sorted(entries, key=lambda entry: (not _is_glob(entry.key, paths), len(entry.key))):
        matched = _matched(entry.key, paths) if _is_glob(entry.key, paths) else [entry.key]
        found.update(dict.fromkeys(matched, entry.value))
    return found


def check_table(entries: Sequence[Entry], plan: Plan, spec: PatchSpec) -> None:
    """Raise PlanError unless the table says of every module exactly what the plan says of it.

    Raises:
        PlanError: a site of the plan that the model does not have.
        AssertionError: the table and the plan differ, which is a defect of ours.
    """
    values = _values(plan)
    known = {*spec.modules, *spec.tensors} or set(values)
    gone = [path for path in values if path not in known]
    if gone:
        raise PlanError(
            f"the plan names {gone[0]!r}, which the model in {spec.path} does not have",
            hint="the plan is for another model, or the file changed since: run the search again",
        )
    found = resolve(entries, sorted(known))
    expected = _with_shared(values, spec)
    assert values.keys() <= found.keys(), "the table leaves out a site"
    assert all(expected.get(path) == value for path, value in found.items()), "the table does not resolve to the plan"


def globs(paths: Sequence[str], known: Sequence[str]) -> list[str]:
    """``paths`` as a person writes them: globs where they match no other of the ``known`` modules."""
    found: dict[str, None] = {}
    for path in paths:
        fitting = (glob for glob in _patterns(path) if set(_matched(glob, known)) <= {*paths})
        found[next(fitting, path) if path in known else path] = None
    return list(found)


@dataclasses.dataclass(frozen=True)
class _Group:
    key: str
    members: tuple[str, ...]
    value: Value | None


def _values(plan: Plan) -> dict[str, Value]:
    return {path: tuple(entry.items()) for path, entry in runtime_table(plan).items()}


def spelled(value: Value) -> str | TableEntry:
    """A value as the file shows it: "bf16", "fp8_e4m3:rowwise", or a dict where it says more."""
    items = dict(value)
    if list(items) == ["format"]:
        return items["format"]  # type: ignore[return-value]
    if list(items) == ["format", "scaling"]:
        return f"{items['format']}:{items['scaling']}"
    return items


def value_of(written: str | Mapping[str, str | int]) -> Value:
    """What ``spelled`` made a text or a dict of."""
    if not isinstance(written, str):
        return tuple(written.items())
    number_format, _, scaling = written.partition(":")
    return (("format", number_format), *((("scaling", scaling),) if scaling else ()))


def _with_shared(values: Mapping[str, Value], spec: PatchSpec) -> dict[str, Value]:
    """``values``, and the same for the further paths of a shared module, which a glob may match."""
    return {**values, **{path: values[first] for path, first in spec.shared.items() if first in values}}


def _in_a_glob(path: str, entries: Iterable[Entry]) -> bool:
    return any(_is_special(entry.key) and _matched(entry.key, [path]) for entry in entries)


def _entries(group: _Group, values: Mapping[str, Value], whys: Mapping[str, str]) -> Iterator[Entry]:
    agreeing = [path for path in group.members if values[path] == group.value]
    reasons = {whys.get(path, "") for path in agreeing}
    yield Entry(group.key, group.value or (), reasons.pop() if len(reasons) == 1 else "")
    for path in group.members:
        if values[path] != group.value:
            yield Entry(path, values[path], whys.get(path, ""))


def _widest_group(path: str, values: Mapping[str, Value], known: Sequence[str], left: Mapping[str, None]) -> _Group:
    """The most general glob for ``path`` whose modules are all planned and agree, else mostly agree, else the path."""
    candidates = [_group(pattern, values, known) for pattern in _patterns(path)]
    usable = [group for group in candidates if group and all(member in left for member in group.members)]
    agreed = [group for group in usable if all(values[member] == group.value for member in group.members)]
    # A group whose minority holds `path` itself is as good: the path is then listed under the glob.
    return next(iter([*agreed, *usable]), _Group(path, (path,), values[path]))


def _group(pattern: str, values: Mapping[str, Value], known: Sequence[str]) -> _Group | None:
    members = _matched(pattern, known)
    if len(members) < 2 or any(member not in values for member in members):
        return None
    ((value, count),) = collections.Counter(values[member] for member in members).most_common(1)
    # A person may read `*` as "anything, dots too": both readings must name the same modules. That a region of a block
    # is around all that the block holds is what it says.
    loosely = {path for path in known if fnmatch.fnmatchcase(path, pattern)}
    below = {path for path in loosely for member in members if path.startswith(f"{member}.")}
    is_region = dict(value).get("how") == "autocast"
    if loosely.difference(members, below if is_region else ()) or 2 * count <= len(members):
        return None
    return _Group(pattern, tuple(members), value)


def _patterns(path: str) -> Iterator[str]:
    """Globs for ``path`` with its block numbers as ``*``, from the most general to the least.

    A number at the end of a container's name counts (``layer1`` of a ResNet); one at the end of a layer's own name
    (``fc1``) is part of its role.
    """
    parts = path.split(".")
    if any(_is_special(part) for part in parts):
        return
    last = parts[-1] if not parts[-1].isdigit() else "*"
    general = [*(_NUMBER.sub("*", part) for part in parts[:-1]), last]
    numbers = [position for position, part in enumerate(general) if "*" in part][:_MAX_INDICES]
    for count in range(len(numbers), 0, -1):
        for chosen in itertools.combinations(numbers, count):
            yield ".".join(general[place] if place in chosen else part for place, part in enumerate(parts))


def _matched(pattern: str, paths: Iterable[str]) -> list[str]:
    wanted = pattern.split(".")
    return [path for path in paths if _parts_match(wanted, path.split("."))]


def _parts_match(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    return len(pattern) == len(parts) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _is_special(text: str) -> bool:
    return any(character in text for character in "*?[")


def _is_glob(key: str, paths: Sequence[str]) -> bool:
    return _is_special(key) and key not in paths
