"""Cases from outside: what users, other tools and unlucky moments do to a hybrid, and what is right
then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(autouse=True)
def quiet_and_repeatable() -> Iterator[None]:
    """One thread, the same random numbers, and nothing left behind."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    # what a test that failed may have left
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.backends.mha.set_fastpath_enabled(True)
