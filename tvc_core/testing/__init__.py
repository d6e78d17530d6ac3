"""What authors of plugins test with: the conformance kit, and stand-ins for distributions and
weights.

Importing it imports neither torch nor pytest. `tvc_core.testing.fixtures` has the same as fixtures
of pytest.
"""

from __future__ import annotations

from .conformance import (
    Check,
    ConformanceError,
    Report,
    check_plugin,
    checks_of,
    parametrize_with_checks,
)
from .distributions import fake_distributions, no_discovery, write_distribution
from .process_watch import HEAVY, ProcessWatch
from .weights import CachedFile, cached_weights, official_weights

__all__ = [
    "CachedFile",
    "Check",
    "ConformanceError",
    "HEAVY",
    "ProcessWatch",
    "Report",
    "cached_weights",
    "check_plugin",
    "checks_of",
    "fake_distributions",
    "no_discovery",
    "official_weights",
    "parametrize_with_checks",
    "write_distribution",
]
