from __future__ import annotations

from typing import Any, Literal, Optional

import pytest
import torch

from amptune.capture.arguments import construction, parse_value
from amptune.errors import TargetError


def made(
    a: int = 1,
    b: float = 0.5,
    c: bool = False,
    d: str = "x",
    e: int | None = None,
    f: Optional[float] = None,  # noqa: UP045
    g: Literal["relu", "gelu"] = "relu",
    h: torch.dtype = torch.float32,
    i=2,  # type: ignore[no-untyped-def]
    j=(1, 2),  # type: ignore[no-untyped-def]
    k=None,  # type: ignore[no-untyped-def]
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("a", "7", 7),
        ("b", "1e-3", 1e-3),
        ("b", "2", 2.0),
        ("c", "true", True),
        ("c", "no", False),
        ("d", "12", "12"),
        ("e", "3", 3),
        ("e", "none", None),
        ("f", "0.1", 0.1),
        ("g", "gelu", "gelu"),
        ("h", "bfloat16", torch.bfloat16),
        ("i", "9", 9),
        ("j", "(3, 4)", (3, 4)),
        ("k", "12", 12),
        ("k", "text", "text"),
    ],
)
def test_texts_are_read_by_annotation_default_or_literal(name: str, text: str, value: Any) -> None:
    assert construction(made, {name: text})()[name] == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("a", "1.5"), ("a", "x"), ("b", "x"), ("c", "maybe"), ("g", "silu"), ("h", "float99"), ("i", "x")],
)
def test_a_text_of_another_type_is_refused(name: str, text: str) -> None:
    with pytest.raises(TargetError, match=f"--arg {name}={text}"):
        construction(made, {name: text})


def test_an_unknown_argument_gets_the_nearest_name() -> None:
    def factory(width: int = 1, depth: int = 2) -> None: ...

    with pytest.raises(TargetError, match="no argument 'widht'; it takes width, depth") as caught:
        construction(factory, {"widht": "3"})
    assert caught.value.hint == "did you mean width?"


def test_a_factory_of_keywords_takes_anything() -> None:
    def factory(**settings: Any) -> dict[str, Any]:
        return settings

    assert construction(factory, {"width": "3", "name": "a"})() == {"width": 3, "name": "a"}


def test_a_call_shows_as_source() -> None:
    def factory(width: int = 1, name: str = "") -> None: ...

    assert str(construction(factory, {"width": "3", "name": "a"})) == "factory(width=3, name='a')"


def test_values_without_a_parameter_are_literals() -> None:
    assert parse_value("--arg x=[1]", "[1]", None) == [1]
