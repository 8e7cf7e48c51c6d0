"""The study in the viewer that the README names, in the environment of the export tests."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from amptune.tune.study.study import JOURNAL, NAME

from ..export.test_libraries import interpreter
from .test_search import FormulaWorker, make_search

BUDGET = 6
PATIENCE_SECONDS = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answer(address: str, server: subprocess.Popen[str]) -> Any:
    """What the server says there, as soon as it listens."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as response:
                return json.load(response)
        except OSError:
            assert server.poll() is None, "it ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.full
def test_optuna_dashboard_shows_every_trial_of_a_study(tmp_path: Path) -> None:
    python, port = interpreter(), free_port()
    search = make_search(tmp_path, FormulaWorker(), BUDGET)
    search.run()
    command = [python.parent / "optuna-dashboard", tmp_path / JOURNAL, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            (summary,) = answer(f"http://127.0.0.1:{port}/api/studies", server)["study_summaries"]
            study = answer(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}", server)
        finally:
            server.terminate()
    assert summary["study_name"] == NAME
    shown = {trial["number"]: trial["values"] for trial in study["trials"]}
    expected = {trial.number: trial.values for trial in search.study.study.get_trials() if trial.values}
    assert len(expected) == BUDGET
    assert shown == {number: list(values) for number, values in expected.items()}
