"""Lints files: from paths to findings, over processes, with a cache of results."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from amptune.core.finding import FileError
from amptune.core.rule import SourceRule
from amptune.lint.check import TextReport, report_text, rules_for
from amptune.lint.discover import SUFFIXES, display
from amptune.lint.prefilter import Prefilter
from amptune.lint.read import decode, is_too_large_for_settings

if TYPE_CHECKING:
    from amptune.lint.cache import ResultCache

# Below this much text a second process costs more than it saves (about 0.1 s to start).
_MIN_BYTES_FOR_PROCESSES = 2_000_000
_COLLECT_EVERY = 50
_CHUNK_BYTES = 400_000
# Up to this much text, Python files without any keyword are parsed as well, only to say which ones do not parse; in
# a larger run that would take most of the time.
_STRICT_BYTES = 1_000_000
_STRICT_FILE_BYTES = 200_000
_PYTHON = (".py", ".pyi", ".ipynb")


class Linter:
    """A set of rules, ready to lint files.

    Args:
        rules: the rules to run.
        cache: where results are looked up and kept; None for none.
        jobs: processes to use; 0 for one a core.
    """

    def __init__(self, rules: Sequence[SourceRule], cache: ResultCache | None = None, jobs: int = 0) -> None:
        self._rules = list(rules)
        self._prefilters = {suffix: Prefilter(rules_for(suffix, rules)) for suffix in SUFFIXES}
        self._cache = cache
        self._jobs = jobs or _cores()
        self._strict = False

    def lint(self, files: Sequence[str]) -> dict[str, TextReport]:
        """A report for each file, in the order given. One that cannot be read has an error in its report."""
        reports: dict[str, TextReport] = {}
        sizes = {file: _size(file) for file in files}
        self._strict = sum(size for size in sizes.values() if size <= _STRICT_FILE_BYTES) <= _STRICT_BYTES
        todo = list(files)
        if self._cache is not None and len(self._cache):
            todo = self._from_cache(files, reports)
        for file, key, report in self._run(todo, sizes):
            reports[file] = report
            if self._cache is not None and key:
                self._cache.add(key, report)
        if self._cache is not None:
            self._cache.save()
        return {file: reports[file] for file in files}

    def _from_cache(self, files: Sequence[str], reports: dict[str, TextReport]) -> list[str]:
        assert self._cache is not None
        todo = []
        for file in files:
            try:
                with open(file, "rb") as stream:
                    found = self._cache.get(self._key(file, stream.read()), file)
            except OSError:
                found = None
            if found is None:
                todo.append(file)
            else:
                reports[file] = found
        return todo

    def _run(self, files: Sequence[str], sizes: dict[str, int]) -> Iterator[tuple[str, str, TextReport]]:
        jobs = min(self._jobs, len(files))
        if jobs < 2 or sum(sizes[file] for file in files) < _MIN_BYTES_FOR_PROCESSES:
            yield from self._run_here(files)
            return
        yield from self._run_in_processes(sorted(files, key=lambda file: -sizes[file]), sizes, jobs)

    def _run_here(self, files: Sequence[str]) -> Iterator[tuple[str, str, TextReport]]:
        collecting = gc.isenabled()
        gc.disable()  # trees are freed by reference counts; scanning them costs a third of the time
        gc.freeze()  # what is there already, rules above all, is not scanned each time
        try:
            for number, file in enumerate(files, 1):
                yield (file, *self._lint_file(file))
                if number % _COLLECT_EVERY == 0:
                    gc.collect(0)
        finally:
            gc.unfreeze()
            if collecting:
                gc.enable()

    def _run_in_processes(
        self, files: Sequence[str], sizes: dict[str, int], jobs: int
    ) -> Iterator[tuple[str, str, TextReport]]:
        import multiprocessing

        # A forked worker has the rules already; where fork is missing they travel by pickle.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in methods else None)
        with context.Pool(jobs, _start_worker, (self,)) as pool:
            for results in pool.imap_unordered(_lint_chunk, list(_chunks(files, sizes))):
                yield from results

    def _lint_file(self, file: str) -> tuple[str, TextReport]:
        """Cache key and report of one file; the key is "" where the result depends on more than the content."""
        try:
            with open(file, "rb") as stream:
                data = stream.read()
        except OSError as error:
            return "", TextReport(errors=(FileError(display(file), f"cannot be read: {error.strerror or error}"),))
        key = self._key(file, data)
        if is_too_large_for_settings(file, data):
            return key, TextReport()
        asked = self._prefilters.get(os.path.splitext(file)[1], self._prefilters[".py"]).asked(data)
        strict = self._strict and len(data) <= _STRICT_FILE_BYTES and file.endswith(_PYTHON)
        if not asked and not strict:
            return key, TextReport()
        shown = display(file)
        try:
            text = decode(file, data)
        except ValueError as error:
            return key, TextReport(errors=(FileError(shown, str(error)),))
        return key, report_text(shown, text, self._rules, asked)

    def _key(self, file: str, data: bytes) -> str:
        if self._cache is None:
            return ""
        return self._cache.key(file, data) + ("" if self._strict else "~")


_worker: Linter | None = None


def _start_worker(linter: Linter) -> None:
    global _worker
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process stops the workers
    gc.disable()
    gc.freeze()
    _worker = linter


def _lint_chunk(files: Sequence[str]) -> list[tuple[str, str, TextReport]]:
    assert _worker is not None
    results = [(file, *_worker._lint_file(file)) for file in files]
    gc.collect(0)  # what has outlived a chunk, such as the known words, is not scanned again
    return results


def _chunks(files: Sequence[str], sizes: dict[str, int]) -> Iterator[list[str]]:
    """Groups of about equal size, large files first, so that no worker ends long after the others."""
    chunk: list[str] = []
    total = 0
    for file in files:
        chunk.append(file)
        total += sizes[file]
        if total >= _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
