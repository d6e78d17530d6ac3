"""What authors of plugins test with: the conformance kit, and stand-ins for distributions and weights.

Importing it imports neither torch nor pytest.
"""

from __future__ import annotations

from .conformance import Check, ConformanceError, Report, check_plugin, checks_of, parametrize_with_checks
from .distributions import write_distribution
from .weights import official_weights

__all__ = [
    "Check",
    "ConformanceError",
    "Report",
    "check_plugin",
    "checks_of",
    "official_weights",
    "parametrize_with_checks",
    "write_distribution",
]
