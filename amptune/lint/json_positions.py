"""JSON with the position of every key and value."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

_TOKEN = re.compile(r'[ \t\r\n]*(?:("(?:[^"\\]|\\.)*")|([{}\[\]:,])|([^\s{}\[\]:,"]+))')
_MAX_DEPTH = 200


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A value with its offsets in the text; the children of an object or array are Parsed as well.

    ``value`` is a dict of name -> (key, value), a list, or a plain scalar. A repeated key keeps its last value, as
    json does.
    """

    value: Any
    start: int
    end: int


def parse_json(text: str) -> Parsed:
    """Parse JSON text.

    Raises:
        ValueError: the text is no JSON, or nested deeper than 200 levels.
    """
    try:
        json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    return _Parser(text).parse(0)


class _Parser:
    """Reads text that is known to be valid."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _token(self) -> tuple[str, int, int]:
        found = _TOKEN.match(self._text, self._at)
        assert found is not None, "the text has been validated"
        group = found.lastindex or 0
        self._at = found.end()
        return found.group(group), found.start(group), found.end(group)

    def _peek(self) -> str:
        at = self._at
        token = self._token()[0]
        self._at = at
        return token

    def parse(self, depth: int) -> Parsed:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        token, start, end = self._token()
        if token == "{":
            return self._object(start, depth)
        if token == "[":
            return self._array(start, depth)
        return Parsed(json.loads(token), start, end)

    def _object(self, start: int, depth: int) -> Parsed:
        members: dict[str, tuple[Parsed, Parsed]] = {}
        if self._peek() == "}":
            return Parsed(members, start, self._token()[2])
        while True:
            token, key_start, key_end = self._token()
            name = json.loads(token)
            self._token()  # the colon
            members[name] = (Parsed(name, key_start, key_end), self.parse(depth + 1))
            token, _, end = self._token()
            if token == "}":
                return Parsed(members, start, end)

    def _array(self, start: int, depth: int) -> Parsed:
        items: list[Parsed] = []
        if self._peek() == "]":
            return Parsed(items, start, self._token()[2])
        while True:
            items.append(self.parse(depth + 1))
            token, _, end = self._token()
            if token == "]":
                return Parsed(items, start, end)
