"""Suppression comments: ``# amptune: ignore[AMP101] reason`` on a line, ``# amptune: ignore-file[AMP101] reason``."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Sequence

from amptune.core.finding import Edit, Finding, Fix, Location
from amptune.core.nearest import nearest
from amptune.core.registry import load_rules
from amptune.core.rule import Rule, SourceRule

MARK = "amptune:"
UNUSED = "AMP001"
_COMMENT = re.compile(r"#\s*amptune:\s*(ignore-file|ignore)(?:\[([^\]\n]*)\])?([^\n#]*)")
_LETTERS = re.compile(r"([A-Z]{1,8})\d{1,3}")
_NEWLINE = re.compile(r"\r\n|\r|\n")


@dataclasses.dataclass(frozen=True)
class Suppression:
    """One suppression comment.

    Attributes:
        codes: codes or prefixes; empty for all rules.
        whole_file: whether it is ``ignore-file``.
        lines: first and last line of the code it is about (lines of a statement that it stands at or above).
        line, column, end_column: where the comment stands.
        alone: whether the comment has its line to itself.
    """

    codes: tuple[str, ...]
    whole_file: bool
    lines: tuple[int, int]
    line: int
    column: int
    end_column: int
    alone: bool

    def covers(self, finding: Finding) -> bool:
        """Whether the finding is silenced by this comment."""
        if self.codes and not any(finding.rule.startswith(code) for code in self.codes):
            return False
        first, last = self.lines
        place = finding.location
        return self.whole_file or (place.line <= last and first <= place.end_line)


def find_suppressions(text: str, python: bool) -> list[Suppression]:
    """The suppression comments of a text, found as comments (not in strings) when it is Python."""
    if MARK not in text:
        return []
    lines = _NEWLINE.split(text)
    found = []
    for number, column in _python_comments(text) if python else _hash_comments(lines):
        match = _COMMENT.search(lines[number - 1], column)
        if match:
            found.append(_suppression(match, number, lines))
    return found


def _suppression(match: re.Match[str], number: int, lines: Sequence[str]) -> Suppression:
    codes = tuple(code.strip() for code in (match.group(2) or "").split(",") if code.strip())
    alone = not lines[number - 1][: match.start()].strip()
    target = number
    while alone and target < len(lines) and (not lines[target].strip() or lines[target].lstrip().startswith("#")):
        target += 1
    target = min(target + 1, len(lines)) if alone else target
    end = match.start() + len(match.group(0).rstrip())
    whole = match.group(1) == "ignore-file"
    return Suppression(codes, whole, (target, target), number, match.start() + 1, end + 1, alone)


def _python_comments(text: str) -> list[tuple[int, int]]:
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return _hash_comments(_NEWLINE.split(text))
    return [token.start for token in tokens if token.type == tokenize.COMMENT]


def _hash_comments(lines: Sequence[str]) -> list[tuple[int, int]]:
    return [(number, match.start()) for number, line in enumerate(lines, 1) if (match := _COMMENT.search(line))]


def suppress(
    findings: Sequence[Finding], suppressions: Sequence[Suppression]
) -> tuple[list[Finding], list[Suppression]]:
    """The findings that are not silenced, and the suppressions that silenced nothing."""
    used: set[Suppression] = set()
    left = []
    for finding in findings:
        covering = [item for item in suppressions if item.covers(finding)]
        used.update(covering)
        if not covering:
            left.append(finding)
    return left, [item for item in suppressions if item not in used]


def unused_findings(
    path: str, text: str, unused: Iterable[Suppression], rule: SourceRule, active: Collection[str]
) -> list[Finding]:
    """Findings about comments that silence nothing; one whose rules did not run is not judged."""
    found = []
    for item in unused:
        if item.codes and not all(any(code.startswith(wanted) for code in active) for wanted in item.codes):
            continue
        what = ", ".join(item.codes) or "any rule"
        place = Location(path, item.line, item.column, item.line, item.end_column)
        message = f"nothing to ignore here for {what}: delete the comment"
        fix = Fix("delete the comment", (_delete(text, item),))
        found.append(Finding(rule.code, rule.name, rule.severity, message, place, fix=fix))
    return found


def unknown_findings(
    path: str, comments: Iterable[Suppression], rule: SourceRule, active: Collection[str]
) -> list[Finding]:
    """Findings about codes in comments that no rule has, whether the comment silences something else or not."""
    found = []
    for item in comments:
        unknown = [wanted for wanted in item.codes if not any(code.startswith(wanted) for code in active)]
        for wanted in unknown:
            if any(code.startswith(wanted) for code in _known_codes()) or _is_of_another_pack(wanted):
                continue
            near = nearest(wanted, _known_codes())
            message = f"no rule is called {wanted}: " + (
                f"did you mean {near}?" if near else "see amptune rules --list"
            )
            place = Location(path, item.line, item.column, item.line, item.end_column)
            found.append(Finding(rule.code, rule.name, rule.severity, message, place))
    return found


def _is_of_another_pack(code: str) -> bool:
    """Whether the code has the letters of no known rule: those of a pack that is not installed here, perhaps."""
    letters = _LETTERS.fullmatch(code)
    return letters is not None and letters[1] not in {known.rstrip("0123456789") for known in _known_codes()}


@functools.cache
def _known_codes() -> frozenset[str]:
    """The codes of all rules: of the installed packs, and of the rules of the project that were loaded."""
    codes = {rule.code for rule in load_rules()}
    classes: list[type[Rule]] = [Rule]
    while classes:
        subclasses = classes.pop().__subclasses__()
        classes += subclasses
        codes |= {cls.code for cls in subclasses if hasattr(cls, "code")}
    return frozenset(codes)


def _delete(text: str, item: Suppression) -> Edit:
    lines = _NEWLINE.split(text)
    line = lines[item.line - 1]
    if item.alone and not line[item.end_column - 1 :].strip() and item.line < len(lines):
        return Edit(item.line, 1, item.line + 1, 1, "")
    start = len(line[: item.column - 1].rstrip()) + 1
    return Edit(item.line, start, item.line, item.end_column, "")
