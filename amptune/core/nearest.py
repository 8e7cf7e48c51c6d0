"""The known name that a mistyped one was meant to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_CUTOFF = 0.5


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, or None when none is similar; among equals the one that begins the same."""
    import difflib  # only needed to word an error

    def similarity(name: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, text.lower(), name.lower()).ratio()
        pairs = zip(text.lower(), name.lower(), strict=False)
        return (ratio, len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))))

    best = max(sorted(known), key=similarity, default=None)
    return best if best is not None and similarity(best)[0] >= _CUTOFF else None
