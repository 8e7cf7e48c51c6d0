"""Which rules have anything to say about a file, by the bytes in it: this decides whether it is parsed at all."""

from __future__ import annotations

import functools
import operator
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
        self._words = _Words({part for group in groups for keyword in group for part in _parts(keyword)})
        looks = {group: _Look(group, self._words.bit) for group in groups}
        self._alike = [([looks[group] for group in conditions], found) for conditions, found in alike.items()]

    def asked(self, data: bytes) -> list[SourceRule]:
        """The rules that would be asked, in the order in which they were given."""
        parts = self._words.parts_in(data)
        known: dict[_Look, bool] = {}
        found: list[SourceRule] = []
        for looks, rules in self._alike:
            for look in looks:
                answer = known.get(look)
                if answer is None:
                    answer = known[look] = look.holds(parts, data)
                if not answer:
                    break
            else:
                found += rules
        return sorted((rule for rule in found if rule.may_concern(data)), key=self._order.__getitem__)


class _Look:
    """Looks for any one of some keywords.

    A keyword that is an identifier, or a part of one, is there when it is in a word of the file; one of several such
    parts is looked for in the bytes, if its parts are there.
    """

    def __init__(self, keywords: _Group, bit: Callable[[bytes], int]) -> None:
        self._whole = 0
        self._others: list[tuple[int, bytes]] = []
        for keyword in keywords:
            needed = functools.reduce(operator.or_, map(bit, _parts(keyword)), 0)
            if _WORD.fullmatch(keyword):
                self._whole |= needed
            else:
                self._others.append((needed, keyword))

    def holds(self, parts: int, data: bytes) -> bool:
        """Whether a file with these parts and bytes has one of the keywords."""
        if parts & self._whole:
            return True
        return any(needed & parts == needed and keyword in data for needed, keyword in self._others)


class _Words:
    """Which of some parts occur in the words of a file, as the bits of a number."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._bits = {part: 1 << number for number, part in enumerate(sorted(parts))}
        self._known: set[bytes] = set()
        self._telling: dict[bytes, int] = {}

    def bit(self, part: bytes) -> int:
        """The bit of a part."""
        return self._bits[part]

    def parts_in(self, data: bytes) -> int:
        """The parts in the words of a file."""
        words = set(data.translate(_SPACED).split())
        self._learn(words - self._known)
        telling = self._telling
        parts = 0
        for word in words & telling.keys():
            parts |= telling[word]
        return parts

    def _learn(self, words: set[bytes]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known = set(self._telling)
        text = b" %b " % b" ".join(words)
        for part, bit in self._bits.items():
            place = text.find(part)
            while place >= 0:
                end = text.index(b" ", place)
                word = text[text.rindex(b" ", 0, place) + 1 : end]
                self._telling[word] = self._telling.get(word, 0) | bit
                place = text.find(part, end)
        self._known |= words


def _parts(keyword: bytes) -> list[bytes]:
    """The identifiers, or parts of them, that a keyword consists of; short ones only where it is one itself."""
    parts: list[bytes] = _WORD.findall(keyword)
    return parts if parts == [keyword] else [part for part in parts if len(part) >= _SHORT]


def _conditions(rule: SourceRule) -> tuple[_Group, ...]:
    """Groups of keywords of each of which one must be there."""
    return (*((item,) if isinstance(item, bytes) else tuple(item) for item in rule.requires), tuple(rule.keywords))


@functools.lru_cache(maxsize=16)
def prefilter_of(rules: tuple[SourceRule, ...]) -> Callable[[bytes], list[SourceRule]]:
    """``asked`` of a prefilter that is kept, for texts that come one at a time."""
    return Prefilter(rules).asked
