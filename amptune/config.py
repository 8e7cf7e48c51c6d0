"""[tool.amptune] of pyproject.toml as a frozen Config. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amptune.core.nearest import nearest
from amptune.errors import ConfigError, UsageError

DEFAULT_MODEL = "model.py"
FILE_NAME = "pyproject.toml"
FAIL_ON = ("error", "warning", "info", "never")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a project.

    Attributes:
        root: folder that patterns and paths are relative to: that of pyproject.toml, else the working directory.
        select: codes or prefixes of the rules to run; empty means the default set.
        ignore: codes or prefixes to leave out.
        per_file_ignores: (glob, codes or prefixes) pairs.
        exclude: globs of files and folders, in .gitignore syntax.
        respect_gitignore: leave out what .gitignore files name.
        fail_on: lowest severity that makes the exit code 1: error, warning, info, never.
        baseline: file of known findings, relative to root.
        rule_paths: files or folders with rules of this project alone.
        model: what analyze and tune work on when no path is given.
        ignore_modules: globs of site ids (module paths) whose findings analyze leaves out.
    """

    root: Path
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_file_ignores: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude: tuple[str, ...] = ()
    respect_gitignore: bool = True
    fail_on: str = "error"
    baseline: str | None = None
    rule_paths: tuple[str, ...] = ()
    model: str | None = None
    ignore_modules: tuple[str, ...] = ()


def load_config(path: Path | None = None, start: Path | None = None) -> Config:
    """The settings in force.

    Args:
        path: a TOML file to read; its [tool.amptune] table must exist.
        start: where the search for pyproject.toml begins, upwards; default the working directory.

    Raises:
        ConfigError: the file is no TOML, a key is unknown, or a value has the wrong type.
    """
    if path is not None:
        table = _table(path)
        if table is None:
            raise ConfigError(f"{path} has no [tool.amptune] table")
        return _config(path, table)
    folder = (start or Path.cwd()).absolute()
    for candidate in (folder, *folder.parents):
        file = candidate / FILE_NAME
        if file.is_file() and (table := _table(file)) is not None:
            return _config(file, table)
    return Config(root=folder)


def default_model() -> str:
    """The model that analyze and tune work on when none is named: ``model`` of [tool.amptune], else model.py."""
    return model_of(load_config())


def model_of(config: Config) -> str:
    """The model of the settings, else model.py.

    Raises:
        UsageError: neither is there.
    """
    if config.model is None and not Path(DEFAULT_MODEL).exists():
        raise UsageError(
            f"no model is named, and there is no {DEFAULT_MODEL} here",
            hint="name its file, such as `amptune tune net.py`, or set model in [tool.amptune] of pyproject.toml",
        )
    return config.model or DEFAULT_MODEL


def _table(path: Path) -> Mapping[str, Any] | None:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    table = data.get("tool", {}).get("amptune") if isinstance(data.get("tool", {}), dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.amptune must be a table, not {_type_name(table)}")
    return table


def _config(path: Path, table: Mapping[str, Any]) -> Config:
    fields: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _READERS:
            near = nearest(key, _READERS)
            hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(sorted(_READERS))}"
            raise ConfigError(f"{path}: [tool.amptune] has no key {key!r}", hint=hint)
        try:
            fields[key.replace("-", "_")] = _READERS[key](value)
        except _WrongValueError as error:
            raise ConfigError(f"{path}: [tool.amptune] {key} {error}") from error
    return Config(root=path.parent.absolute(), **fields)


class _WrongValueError(ValueError):
    """What is wrong with a value, as the end of a sentence that begins with the key."""


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _WrongValueError(f"must be a list of strings, not {_type_name(value)}")
    return tuple(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongValueError(f"must be a string, not {_type_name(value)}")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongValueError(f"must be true or false, not {_type_name(value)}")
    return value


def _fail_on(value: Any) -> str:
    if value not in FAIL_ON:
        raise _WrongValueError(f"must be one of {', '.join(FAIL_ON)}, not {value!r}")
    return str(value)


def _ignores_by_glob(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, dict):
        raise _WrongValueError(f"must be a table of glob = [codes], not {_type_name(value)}")
    return tuple((glob, _strings(codes)) for glob, codes in value.items())


def _type_name(value: Any) -> str:
    names = {dict: "a table", list: "a list with something else in it", str: "a string", bool: "a truth value",
             int: "a number", float: "a number"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[Any], Any]] = {
    "select": _strings,
    "ignore": _strings,
    "per-file-ignores": _ignores_by_glob,
    "exclude": _strings,
    "respect-gitignore": _boolean,
    "fail-on": _fail_on,
    "baseline": _string,
    "rule-paths": _strings,
    "model": _string,
    "ignore-modules": _strings,
}
