"""Which rules have anything to say about a file, by the bytes in it: this decides whether it is parsed at all."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from amptune.core.rule import SourceRule

_WORD = re.compile(rb"[A-Za-z0-9_]+")
# Every byte that is in no identifier becomes a space.
_SPACED = bytes(code if _WORD.fullmatch(bytes([code])) else 32 for code in range(256))
_SHORT = 3  # a keyword whose words are all shorter than this is looked for in the file itself
_MAX_KNOWN = 300_000

_Group = tuple[bytes, ...]


class Prefilter:
    """Looks for the keywords of some rules.

    A file is cut into its words once, which costs about as much as looking for ten keywords in it. Which keywords a
    word holds is worked out once for each word of the whole run, since files of a project share most of theirs.
    """

    def __init__(self, rules: Sequence[SourceRule]) -> None:
        self._order = {rule: number for number, rule in enumerate(rules)}
        alike: dict[tuple[_Group, ...], list[SourceRule]] = {}
        for rule in rules:
            alike.setdefault(_conditions(rule), []).append(rule)
        self._alike = list(alike.items())
        keywords = {keyword for conditions in alike for group in conditions for keyword in group}
        self._parts = {keyword: _longest_word(keyword) for keyword in keywords}
        self._words = _Words({part for part in self._parts.values() if part})

    def asked(self, data: bytes) -> list[SourceRule]:
        """The rules that would be asked, in the order in which they were given."""
        parts = self._words.parts_in(data)
        known: dict[_Group, bool] = {}

        def has(keyword: bytes) -> bool:
            part = self._parts[keyword]
            return (not part or part in parts) and (part == keyword or keyword in data)

        def holds(group: _Group) -> bool:
            if group not in known:
                known[group] = any(map(has, group))
            return known[group]

        found = [rule for conditions, rules in self._alike if all(map(holds, conditions)) for rule in rules]
        return sorted((rule for rule in found if rule.may_concern(data)), key=self._order.__getitem__)


class _Words:
    """Which of some parts occur in the words of a file."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = sorted(parts)
        self._known: set[bytes] = set()
        self._telling: set[bytes] = set()
        self._holders: dict[bytes, list[bytes]] = {}

    def parts_in(self, data: bytes) -> set[bytes]:
        words = set(data.translate(_SPACED).split())
        self._learn(words - self._known)
        return {part for word in words & self._telling for part in self._holders[word]}

    def _learn(self, words: set[bytes]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known = set(self._telling)
        text = b" ".join(words)
        for part in self._parts:
            if part in text:
                for word in words:
                    if part in word:
                        self._holders.setdefault(word, []).append(part)
        self._known |= words
        self._telling.update(self._holders)


@functools.cache
def _longest_word(keyword: bytes) -> bytes:
    """The longest identifier in a keyword; b"" where that says too little to be worth a look."""
    longest = max(_WORD.findall(keyword), key=len, default=b"")
    return longest if len(longest) >= _SHORT or longest == keyword else b""


def _conditions(rule: SourceRule) -> tuple[_Group, ...]:
    """Groups of keywords of each of which one must be there."""
    return (*((item,) if isinstance(item, bytes) else tuple(item) for item in rule.requires), tuple(rule.keywords))


@functools.lru_cache(maxsize=16)
def prefilter_of(rules: tuple[SourceRule, ...]) -> Callable[[bytes], list[SourceRule]]:
    """``asked`` of a prefilter that is kept, for texts that come one at a time."""
    return Prefilter(rules).asked
