"""Hybrids in the hands of other tools, as `make test-interop` installs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_and_repeatable() -> Iterator[None]:
    """One thread, the same random numbers, and nothing left behind."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
