"""An option for runs that have to leave nothing out, and fixtures for several packages of tests.

Torch is imported where a fixture is used: many tests run without it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

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


@pytest.fixture
def process_group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone; its backend is gloo, or the fixture's parameter."""
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("group") / "store"
    backend = getattr(request, "param", "gloo")
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch computes in one thread, in the processes that a test starts too: two that wait for each other on a busy
    machine take longer than one."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile knows nothing of other tests, and they nothing of this one."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
