"""Which rules have anything to say about a file, by the bytes in it: this decides whether it is parsed at all."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from amptune.core.rule import SourceRule

_WORD = re.compile(rb"[A-Za-z0-9_]+")
# Every byte that is in no identifier becomes a space.
_SPACED = bytes(code if _WORD.fullmatch(bytes([code])) else 32 for code in range(256))
_SHORT = 3  # shorter words say too little to be worth a look
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
        groups = dict.fromkeys(group for conditions in alike for group in conditions)
        looks = {group: _Look(group) for group in groups}
        self._alike = [([looks[group] for group in conditions], found) for conditions, found in alike.items()]
        self._words = _Words({part for look in looks.values() for part in look.parts})

    def asked(self, data: bytes) -> list[SourceRule]:
        """The rules that would be asked, in the order in which they were given."""
        parts = self._words.parts_in(data)
        known: dict[_Look, bool] = {}

        def holds(look: _Look) -> bool:
            answer = known.get(look)
            if answer is None:
                answer = known[look] = look.holds(parts, data)
            return answer

        found = [rule for looks, rules in self._alike if all(map(holds, looks)) for rule in rules]
        return sorted((rule for rule in found if rule.may_concern(data)), key=self._order.__getitem__)


class _Look:
    """Looks for any one of some keywords.

    ``parts`` are identifiers, or parts of them, that the keywords consist of. A keyword that is one itself is there
    when it is in a word of the file; one of several parts is looked for in the bytes, if its parts are there.
    """

    def __init__(self, keywords: _Group) -> None:
        self._whole = frozenset(keyword for keyword in keywords if _WORD.fullmatch(keyword))
        others = [keyword for keyword in keywords if keyword not in self._whole]
        self._others = [
            (frozenset(word for word in _WORD.findall(item) if len(word) >= _SHORT), item) for item in others
        ]
        self.parts = self._whole.union(*(parts for parts, _ in self._others))

    def holds(self, parts: set[bytes], data: bytes) -> bool:
        """Whether a file with these parts and bytes has one of the keywords."""
        if not self._whole.isdisjoint(parts):
            return True
        return any(needed <= parts and keyword in data for needed, keyword in self._others)


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
        text = b" %b " % b" ".join(words)
        for part in self._parts:
            place = text.find(part)
            while place >= 0:
                end = text.index(b" ", place)
                self._holders.setdefault(text[text.rindex(b" ", 0, place) + 1 : end], []).append(part)
                place = text.find(part, end)
        self._known |= words
        self._telling.update(self._holders)


def _conditions(rule: SourceRule) -> tuple[_Group, ...]:
    """Groups of keywords of each of which one must be there."""
    return (*((item,) if isinstance(item, bytes) else tuple(item) for item in rule.requires), tuple(rule.keywords))


@functools.lru_cache(maxsize=16)
def prefilter_of(rules: tuple[SourceRule, ...]) -> Callable[[bytes], list[SourceRule]]:
    """``asked`` of a prefilter that is kept, for texts that come one at a time."""
    return Prefilter(rules).asked
