"""Makes `python -m tvc_cli` the same as the command `tvc`."""

from __future__ import annotations

from .main import main

main()
