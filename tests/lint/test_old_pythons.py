"""What early releases of Python 3.11 get wrong is not used: Debian 12 has one of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
POSSESSIVE_GROUP = re.compile(r"\)[*+?]\+")


def test_no_repeated_group_is_possessive_itself() -> None:
    """Until 3.11.4 such a group matches wrongly or raises SystemError (gh-101955); an atomic group does the same."""
    assert POSSESSIVE_GROUP.search('rb"(?:[^=]++|x)*+"')
    assert not POSSESSIVE_GROUP.search('rb"(?>(?:[^=]++|x)*)"')
    sources = [*(ROOT / "amptune").rglob("*.py"), *(ROOT / "rules").rglob("*.py")]
    patterns = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if POSSESSIVE_GROUP.search(line) and not line.lstrip().startswith("#")
    ]
    assert patterns == []
