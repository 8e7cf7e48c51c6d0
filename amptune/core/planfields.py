"""The fields of a plan's JSON objects, checked one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from amptune.core.formats import Format
from amptune.core.nearest import nearest
from amptune.errors import PlanError

_DTYPES = (Format.FP32, Format.BF16, Format.FP16)


class Fields:
    """Typed access to a JSON object, with the field's name in every error."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise PlanError(f"{where}: expected an object, found {type(data).__name__}")
        self.data = data
        self.where = where

    def know(self, known: Iterable[str]) -> Self:
        """These fields, none of which may be another than the known: one that is mistyped would change nothing.

        Raises:
            PlanError: one is.
        """
        known = list(known)
        for key in self.data:
            if key not in known:
                near = nearest(key, known)
                raise PlanError(f"{self.where}: unknown field {key!r}",
                                hint=f"did you mean {near}?" if near else f"known: {', '.join(known)}")  # fmt: skip
        return self

    def get(self, key: str, kind: type) -> Any:
        """The value of a field that has to be there.

        Raises:
            PlanError: it is missing or of another type.
        """
        if key not in self.data:
            raise PlanError(f"{self.where}: field {key!r} is missing")
        value = self.data[key]
        wrong_bool = isinstance(value, bool) and kind is not bool
        if wrong_bool or not isinstance(value, (int, float) if kind is float else kind):
            raise PlanError(f"{self.where}: field {key!r} is {value!r}, expected {kind.__name__}")
        return value

    def format(self, key: str) -> Format | None:
        """A number format; None where there is none.

        Raises:
            PlanError: it is unknown.
        """
        value = self.data.get(key)
        if value is None:
            return None
        try:
            return Format.parse(str(value))
        except ValueError as error:
            near = nearest(str(value), (member.label for member in Format))
            raise PlanError(
                f"{self.where}: field {key!r}: {error}", hint=f"did you mean {near}?" if near else None
            ) from None

    def dtype(self, key: str) -> Format | None:
        """A number format that tensors can have as their dtype without a scale; None where there is none.

        Raises:
            PlanError: it is another.
        """
        found = self.format(key)
        if found not in (None, *_DTYPES):
            raise PlanError(f"{self.where}: field {key!r} is {found}, not one of {', '.join(map(str, _DTYPES))}")
        return found
