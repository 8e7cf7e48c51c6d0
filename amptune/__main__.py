"""``python -m amptune`` and the ``amptune`` script."""

from __future__ import annotations

import atexit
import os
import sys


def main() -> int:
    """Run the command line; the exit code is the return value."""
    from amptune.cli import run

    code = run(sys.argv[1:], own_process=True)
    if sys.argv[1:2] in (["lint"], ["analyze"]):
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End the process at once: nothing is left to do but what was asked for at exit, and taking down Python (with all
    that torch and a model have loaded) is a tenth of a short run."""
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # the reader went away; the usual way out copes with that
    os._exit(code)


def _without_working_directory() -> None:
    """Take off the path what ``python -m`` puts first, as the script has it: torch and Python's own modules would be
    looked for among the user's files, of which one may be called ``random.py``. It stays where amptune lies there."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    if not sys.flags.safe_path and sys.path[:1] == [here] and os.path.realpath(here) != ours:
        del sys.path[0]


if __name__ == "__main__":
    _without_working_directory()
    sys.exit(main())
