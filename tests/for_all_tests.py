"""What all tests use, wherever they stand: the fixtures that tvc ships for tests of plugins, a
browser, and a quick collection of garbage. The conftest.py of each folder of tests loads it.
"""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

pytest_plugins = ["tvc_core.testing.fixtures"]


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report each test
gc.disable()  # until all tests are known: they and what they import stay
if hasattr(os, "register_at_fork"):
    # a collection in a child would copy the pages of all that the tests before have left
    os.register_at_fork(after_in_child=gc.freeze)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's shell starts what runs in the background so, all that the tests start inherits it,
    # and no Ctrl-C would reach them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave out of garbage collection what lives as long as the session."""
    # Torch and thousands of tests are 700,000 objects, which every full collection looks through
    # again: a third of a second each time, in tests that are otherwise over as soon.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium, one for all tests of pages: playwright takes a process once. Without it
    they skip by name, and fail where CI=true asks for all tests.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        missing = "chromium is not installed, or playwright is not, which open the pages"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}, and CI=true asks for all tests")
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
