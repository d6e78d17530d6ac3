"""What all tests use: the fixtures that tvc ships for tests of plugins, quick random starts, and a
browser.
"""

import functools
import gc
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

pytest_plugins = ["tvc_core.testing.fixtures"]


POOL = 65_521
"""Values drawn for a large tensor; a prime, so that no two rows of a weight are alike."""


def draw_quickly(name: str) -> None:
    """Let this method of tensors draw a pool of values and repeat it where a tensor is larger.

    Random starts of networks were an eighth of what all tests took. A seed goes on deciding them,
    but a child process, which draws each value, starts otherwise.
    """
    import torch
    from torch.overrides import handle_torch_function, has_torch_function_unary

    each = getattr(torch.Tensor, name)

    @functools.wraps(each)
    def draw(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if has_torch_function_unary(tensor):  # a mode sees one call, as of any method
            return handle_torch_function(draw, (tensor,), tensor, *args, **kwargs)
        fills = tensor.numel() > POOL and tensor.is_cpu and tensor.is_contiguous()
        if not fills or (tensor.requires_grad and torch.is_grad_enabled()):
            return each(tensor, *args, **kwargs)
        pool, flat = each(tensor.new_empty(POOL), *args, **kwargs), tensor.detach().view(-1)
        whole = len(flat) // POOL
        flat[: whole * POOL].view(whole, POOL).copy_(pool)
        flat[whole * POOL :] = pool[: len(flat) % POOL]
        return tensor

    setattr(torch.Tensor, name, draw)


# before anything keeps a method; a run of one process draws as torch does
if "PYTEST_XDIST_WORKER" in os.environ:
    draw_quickly("normal_")
    draw_quickly("uniform_")


gc.disable()  # until all tests are known: they and what they import stay
if hasattr(os, "register_at_fork"):
    # a collection in a child would copy the pages of all that the tests before have left
    os.register_at_fork(after_in_child=gc.freeze)


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
