"""A real browser for the tests of pages."""

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(
            f"no browser on the PATH, none of {', '.join(names)}: on Debian or Ubuntu, apt-get install chromium"
        )
    return found


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page and returns its document after the scripts have run."""

    def open_page(text):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [browser, *options, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return open_page
