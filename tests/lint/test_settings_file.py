"""JSON and YAML settings with positions."""

from __future__ import annotations

from typing import Any

import pytest

from amptune.lint.fixing import apply_edits
from amptune.lint.settings_file import Entry, SettingsFile

DEEPSPEED = """{
\t"train_batch_size": 8, "note": "a \\"quoted\\" \\/ é",
\t"fp16": {"enabled": "true", "loss_scale": 0},
\t"zero_optimization": {"stage": 2, "list": [1, {"deep": null}]}
}
"""


# Each level repeats the one before nine times: 9**8 values from a few hundred bytes.
LAUGHS = "a: &a [" + ",".join("x" * 9) + "]\n"
for before, name in zip("abcdefg", "bcdefgh", strict=True):
    LAUGHS += f"{name}: &{name} [" + ",".join([f"*{before}"] * 9) + "]\n"


def entry(settings: SettingsFile, *path: str) -> Entry:
    found = settings.get(*path)
    assert found is not None
    return found


def place(settings: SettingsFile, *path: str) -> tuple[int, int, int, int]:
    location = settings.location(*entry(settings, *path).value_span)
    return (location.line, location.column, location.end_line, location.end_column)


def test_json() -> None:
    settings = SettingsFile("ds.json", DEEPSPEED)
    assert settings.kind == "deepspeed"
    assert entry(settings, "note").value == 'a "quoted" / é'
    assert entry(settings, "fp16", "enabled").value == "true"
    assert entry(settings, "fp16", "enabled").quoted
    assert not entry(settings, "fp16", "loss_scale").quoted
    assert place(settings, "fp16", "enabled") == (3, 22, 3, 28)
    assert entry(settings, "zero_optimization").value == {"stage": 2, "list": [1, {"deep": None}]}
    assert entry(settings, "zero_optimization", "list", "deep").value is None
    assert settings.get("fp16", "missing") is None


def test_yaml() -> None:
    text = "# é\ncompute_environment: LOCAL\nfp16: yes\nscale: 1e-4\nport: '29500'\nnested:\n  - {a: &x [1], b: *x}\n"
    settings = SettingsFile("a.yaml", text)
    assert settings.kind == "accelerate"
    values = {key: item.value for key, item in settings.sections[0].entries.items()}
    assert values["fp16"] is True
    assert values["scale"] == 1e-4
    assert values["port"] == "29500"
    assert entry(settings, "nested", "b").value == [1]
    assert place(settings, "port") == (5, 7, 5, 14)


def test_yaml_with_several_documents() -> None:
    settings = SettingsFile("a.yml", "a: 1\n---\nb: 2\n")
    assert [set(section.entries) for section in settings.sections] == [{"a"}, {"b"}]


@pytest.mark.parametrize(
    ("path", "text", "key", "after"),
    [
        ("a.json", '{"a": 1, "b": 2}', "a", '{ "b": 2}'),
        ("a.json", '{"a": 1, "b": 2}', "b", '{"a": 1}'),
        ("a.json", '{"a": 1}', "a", "{}"),
        ("a.yaml", "a: 1\nb: 2  # two\nc: 3\n", "b", "a: 1\nc: 3\n"),
    ],
)
def test_delete(path: str, text: str, key: str, after: str) -> None:
    settings = SettingsFile(path, text)
    assert apply_edits(text, [settings.delete(entry(settings, key))]) == after
    SettingsFile(path, after)


def test_replace_value() -> None:
    settings = SettingsFile("a.json", DEEPSPEED)
    edit = settings.replace_value(entry(settings, "fp16", "enabled"), "true")
    assert '"enabled": true,' in apply_edits(DEEPSPEED, [edit])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"fp16": {"enabled": True}}, "deepspeed"),
        ({"output_dir": "x", "fp16": True, "learning_rate": 1}, "training_arguments"),
        ({"mixed_precision": "fp16", "distributed_type": "NO"}, "accelerate"),
        ({"precision": 16, "devices": 1}, "lightning"),
        ({"name": "package"}, "unknown"),
    ],
)
def test_kinds(data: dict[str, Any], kind: str) -> None:
    import json

    assert SettingsFile("a.json", json.dumps(data)).kind == kind


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.json", "{"),
        ("a.json", '{"a": 1,}'),
        ("a.json", ""),
        ("a.json", "[" * 5000 + "]" * 5000),
        ("a.json", "[" * 300 + "]" * 300),
        ("a.yaml", "a: [1\nb: 2"),
        ("a.yaml", "a: *missing"),
        ("a.yaml", "a: &a [*a]"),
        ("a.yaml", LAUGHS),
        ("a.yaml", "\x01"),
    ],
    ids=["open", "comma", "empty", "deep", "deeper", "yaml", "anchor", "itself", "laughs", "control"],
)  # fmt: skip
def test_bad_text_is_a_value_error(path: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        SettingsFile(path, text)


def test_scalars_and_empty_documents_have_no_sections() -> None:
    assert SettingsFile("a.yaml", "").sections == []
    assert SettingsFile("a.yaml", "# nothing\n---\njust text\n").sections == []
    assert SettingsFile("a.json", "[1, 2]").sections == []
