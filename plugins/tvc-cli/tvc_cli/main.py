"""The entry point of the command `tvc`."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 fine, 1 an error, 2 wrong usage, 130 interrupted."""
    gc.disable()  # imports leave no garbage, and looking for it is 4 % of `tvc --help`
    try:
        # inside the guard: Ctrl-C during these imports shows no traceback either
        from .streams import stdout_for_results

        with stdout_for_results():
            from .group import tvc

            tvc(prog_name="tvc")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
