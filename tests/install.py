"""Install what `pip install` with these arguments would, by uv, which downloads and unpacks several
packages at once; by pip itself where uv does not get there.

uv reads none of pip's settings, so those that say where packages come from are handed to it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

FOR_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
}
PIP = (sys.executable, "-m", "pip")


def settings(listed: str) -> dict[str, str]:
    """Return uv's environment for what `pip config list` prints, SECTION.NAME='VALUE' a line."""
    # pip takes the best version of all indexes, uv by itself that of the first that has any
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for section in ("global", "install", ":env:"):  # the later wins, as in pip
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            key = FOR_UV.get(name.removeprefix(f"{section}."))
            if key:
                words = str(ast.literal_eval(value)).split()
                found[key] = ("," if key == "UV_FIND_LINKS" else " ").join(words)
    return found


def install(*arguments: str) -> int:
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True)
    environment = {**settings(listed.stdout), **os.environ}
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    if subprocess.run([*command, *arguments], env=environment, check=False).returncode == 0:
        return 0
    print("uv did not install it; pip tries", file=sys.stderr)
    return subprocess.run([*PIP, "install", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(install(*sys.argv[1:]))
