"""[tool.amptune]."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.config import Config, default_model, load_config
from amptune.errors import ConfigError


def write(folder: Path, table: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(table)
    return path


def test_all_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [tool.amptune]
        select = ["AMP1"]
        ignore = ["AMP112"]
        exclude = ["vendor/"]
        respect-gitignore = false
        fail-on = "warning"
        baseline = "amp.json"
        rule-paths = ["tools/rules"]
        model = "net.py:Net"
        [tool.amptune.per-file-ignores]
        "tests/*" = ["AMP1", "AMP2"]
        """,
    )
    assert load_config(path) == Config(
        root=tmp_path,
        select=("AMP1",),
        ignore=("AMP112",),
        per_file_ignores=(("tests/*", ("AMP1", "AMP2")),),
        exclude=("vendor/",),
        respect_gitignore=False,
        fail_on="warning",
        baseline="amp.json",
        rule_paths=("tools/rules",),
        model="net.py:Net",
    )


def test_found_upwards_past_projects_without_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[tool.amptune]\nmodel = "big.py"\n')
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    write(inner, "[tool.other]\nx = 1\n")
    assert load_config(start=inner).root == tmp_path
    monkeypatch.chdir(inner)
    assert default_model() == "big.py"


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config(root=tmp_path)
    (tmp_path / "model.py").touch()
    assert default_model() == "model.py"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[tool.amptune]\nselct = []", "no key 'selct'.*did you mean 'select'"),
        ("[tool.amptune]\nper-file-ignore = {}", "did you mean 'per-file-ignores'"),
        ("[tool.amptune]\nzzz = 1", "known keys: baseline, exclude"),
        ("[tool.amptune]\nselect = 'AMP1'", "select must be a list of strings, not a string"),
        ("[tool.amptune]\nselect = [1]", "must be a list of strings"),
        ("[tool.amptune]\nfail-on = 'bad'", "fail-on must be one of error, warning, info, never, not 'bad'"),
        ("[tool.amptune]\nrespect-gitignore = 1", "must be true or false, not a number"),
        ("[tool.amptune]\nmodel = ['a']", "model must be a string"),
        ("[tool.amptune]\nper-file-ignores = ['a']", "must be a table"),
        ("[tool]\namptune = 3", "tool.amptune must be a table, not a number"),
        ("[tool.amptune", "not valid TOML"),
        ("x = 1", "has no .tool.amptune. table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)pyproject\.toml.*{message}"):
        load_config(write(tmp_path, table))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml")
