"""The command line: picks a command, imports only that command's module, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

from amptune import __version__
from amptune.errors import AmptuneError, MissingExtraError, UsageError

INTERRUPTED = 130
INTERNAL_ERROR = 3
_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
TRACEBACK = "AMPTUNE_TRACEBACK"
COMMANDS: dict[str, str] = {
    "lint": "find mixed precision bugs in source files, without importing them",
    "analyze": "which layers waste the tensor cores or break in 16 or 8 bits, and what each recipe would gain",
    "tune": "search the fastest format for every layer that trains as well, by measurement",
    "bench": "measure all stock recipes, and a plan, side by side",
    "debug": "train in fp16, bf16 or fp8 and name the first op that overflows, underflows or turns NaN",
    "verify": "train a patched model against the original and say whether they part",
    "apply": "write the patched model of a plan, without a search",
    "export": "write a plan for a trainer or library: training loop, configuration, per-layer policy",
    "init": "write the functions that tell amptune how to build and feed a model",
    "doctor": "what this machine and its torch can do, format by format, and which recipe to start from",
    "rules": "list all rules and where each came from",
    "explain": "print the documentation of a rule",
}
EXTRA_OF_MODULE = {"torch": "analyze", "networkx": "analyze", "numpy": "analyze", "optuna": "tune", "scipy": "tune",
                   "rich": "report", "torchao": "fp8"}  # fmt: skip


class Command(Protocol):
    """What a module of ``amptune.commands`` provides."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; returns the exit code."""


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code and one clear message."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """The error for what the command does not take, with the flag that was probably meant."""
        from amptune.core.nearest import nearest

        flag = arguments[0].partition("=")[0]
        near = nearest(flag, self._option_string_actions) if flag.startswith("-") else None
        self.error(f"unrecognized arguments: {' '.join(arguments)}{f' (did you mean {near}?)' if near else ''}")


def run(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Run one command line; never raises for a user's mistake.

    ``own_process``: this process ends with the exit code, so that a command may do its work in a fork of it.
    """
    try:
        if sys.stdout is None:  # how Python shows that it was closed
            raise UsageError("standard output is closed", hint="redirect it to a file, or to /dev/null")
        code = _dispatch(list(argv), own_process)
        sys.stdout.flush()
        return code
    except AmptuneError as error:
        print(f"amptune: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("amptune: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, a pager) went away: not an error of ours, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS and error.filename is None:
            print(f"amptune: error: {_unwritten(error)}", file=sys.stderr)
            return UsageError.exit_code
        if os.environ.get(TRACEBACK):
            raise
        if shadow := _shadowing(error):
            print(f"amptune: error: {shadow}", file=sys.stderr)
            return shadow.exit_code
        print(f"amptune: internal error: {_origin(error)}", file=sys.stderr)
        print(f"  this is a bug of amptune; {TRACEBACK}=1 shows the traceback for a report", file=sys.stderr)
        return INTERNAL_ERROR


def _unwritten(error: OSError) -> UsageError:
    """What to say where a write failed: to standard output, or to a file, whose name such an error does not have."""
    is_output = _takes_nothing(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
    if is_output:
        return UsageError(f"cannot write to standard output: {error.strerror}")
    return UsageError(f"cannot write a file: {error.strerror}", hint="free space on the disk, or in the folder TMPDIR")


def _takes_nothing(descriptor: int) -> bool:
    """Whether standard output is on a full disk, or a device that is no terminal and not the null device."""
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode):
        return os.fstatvfs(descriptor).f_bavail == 0
    is_null = found.st_rdev == os.stat(os.devnull).st_rdev
    return stat.S_ISCHR(found.st_mode) and not os.isatty(descriptor) and not is_null


def _dispatch(argv: list[str], own_process: bool) -> int:
    parser = _Parser(prog="amptune", description="Mixed precision for PyTorch training: lint, analyze, tune.")
    parser.add_argument("--version", action="version", version=f"amptune {__version__}")
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module: Command | None = None
    chosen_parser = parser
    for name, text in COMMANDS.items():
        if chosen not in (None, name):
            continue  # the others would only be made: their names are in COMMANDS
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            module, chosen_parser = _load(name), sub
            module.configure(sub)
    try:
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            chosen_parser.refuse(unknown)
    except SystemExit as stop:  # argparse has printed its message
        return int(stop.code or 0)
    assert module is not None
    args.own_process = own_process
    try:
        return module.run(args)
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _load(name: str) -> Command:
    try:
        return cast("Command", importlib.import_module(f"amptune.commands.{name}"))
    except ModuleNotFoundError as error:
        raise _missing(error) from error


def _origin(error: Exception) -> str:
    """Type, text and place of an error that nobody foresaw, on one line."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" ({os.path.basename(last.tb_frame.f_code.co_filename)}:{last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}{place}"


def _shadowing(error: Exception) -> AmptuneError | None:
    """The message about a file of the user's that hides a module, where the error comes of one."""
    from amptune.commands.shadows import shadowing

    return shadowing(error)


def _missing(error: ModuleNotFoundError) -> Exception:
    if shadow := _shadowing(error):
        return shadow
    top = (error.name or "").split(".")[0]
    return MissingExtraError.for_extra(EXTRA_OF_MODULE[top], top) if top in EXTRA_OF_MODULE else error
