"""An option for runs that have to leave nothing out."""

from __future__ import annotations

from collections.abc import Generator

import pytest

NO_SKIPS = "--no-skips"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(NO_SKIPS, action="store_true", help="a test that is skipped has failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    known_to_fail = hasattr(report, "wasxfail")
    if report.skipped and not known_to_fail and item.config.getoption(NO_SKIPS):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} ({NO_SKIPS}: a skip is a failure)"
    return report
