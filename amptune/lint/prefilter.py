"""Which rules have anything to say about a file, by the bytes in it: this decides whether it is parsed at all."""

from __future__ import annotations

from collections.abc import Sequence

from amptune.core.rule import SourceRule


class Prefilter:
    """Looks for the keywords of some rules. Each keyword is looked for once a file, however many rules share it."""

    def __init__(self, rules: Sequence[SourceRule]) -> None:
        self._rules = list(rules)
        # A closer look costs more than a search for bytes, and is not needed once another rule has spoken.
        self._closer = [rule for rule in rules if type(rule).may_concern is not SourceRule.may_concern]
        groups: dict[frozenset[bytes], set[bytes]] = {}
        for rule in rules:
            if rule not in self._closer:
                groups.setdefault(frozenset(rule.requires), set()).update(rule.keywords)
        self._groups = [(tuple(sorted(requires)), _shortest(keywords)) for requires, keywords in groups.items()]

    def passes(self, data: bytes) -> bool:
        """Whether any rule would be asked."""
        plain = any(
            all(word in data for word in requires) and any(word in data for word in keywords)
            for requires, keywords in self._groups
        )
        return plain or any(
            all(word in data for word in rule.requires)
            and any(word in data for word in rule.keywords)
            and rule.may_concern(data)
            for rule in self._closer
        )

    def asked(self, data: bytes) -> list[SourceRule]:
        """The rules that would be asked."""
        known: dict[bytes, bool] = {}

        def has(word: bytes) -> bool:
            if word not in known:
                known[word] = word in data
            return known[word]

        return [
            rule
            for rule in self._rules
            if all(map(has, rule.requires)) and any(map(has, rule.keywords)) and rule.may_concern(data)
        ]


def _shortest(keywords: set[bytes]) -> tuple[bytes, ...]:
    """The keywords without those that contain another one: a file has any of all if it has any of these."""
    chosen: list[bytes] = []
    for keyword in sorted(keywords, key=lambda word: (len(word), word)):
        if not any(other in keyword for other in chosen):
            chosen.append(keyword)
    return tuple(chosen)
