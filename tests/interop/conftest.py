"""Hybrids in the hands of other tools, as `make test-interop` installs them."""

from case_tools import quiet_and_repeatable

__all__ = ["quiet_and_repeatable"]
