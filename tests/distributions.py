"""Building distributions, and clean environments to install them into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]

BUILD = """
import json, os, sys
from hatchling import build
for kind, folder, out in json.loads(sys.argv[1]):
    os.chdir(folder)
    getattr(build, f"build_{kind}")(out)
"""

OFFLINE = ("--no-index", "--no-compile")
"""Nothing from a network, and no bytecode of modules that a test never imports."""


def build(jobs: list[tuple[str, Path, Path]]) -> None:
    """Build wheels and sdists ("wheel" or "sdist", source, destination), all in one process, as a
    frontend would.
    """
    text = json.dumps([[kind, str(folder), str(out)] for kind, folder, out in jobs])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, text], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def by_name(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the files of a folder by the names of their distributions."""
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob(pattern)}


@dataclass(frozen=True)
class Built:
    """What a release consists of, by distribution, and the wheels built from the source tree
    without an sdist.
    """

    folder: Path
    sdists: dict[str, Path]
    wheels: dict[str, Path]
    from_tree: dict[str, Path]


class Environment:
    """A virtual environment that sees the running one's packages except ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "env"
        venv.create(self.folder, with_pip=False, symlinks=True)
        self.python = self.folder / "bin" / "python"
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            ours = entry.name.startswith(
                ("tvc", "_hybrid", "torchvision_customizer", "_editable", "__editable__")
            )
            if not ours and entry.suffix != ".pth":
                (borrowed / entry.name).symlink_to(entry)
        self.site = next((self.folder / "lib").glob("python*/site-packages"))
        (self.site / "borrowed.pth").write_text(str(borrowed), encoding="utf-8")

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.clean(), check=False
        )
        assert done.returncode == 0, done.stderr

    def install(self, *wheels: Path) -> None:
        """Install these files and nothing else."""
        self.pip("install", *OFFLINE, "--no-deps", *map(str, wheels))

    def install_by_name(self, folder: Path, *names: str) -> None:
        """Install distributions with what they require, from a folder of wheels."""
        self.pip("install", *OFFLINE, "--find-links", str(folder), *names)

    def run(self, code: str) -> str:
        return self.command(self.python, "-c", code)

    def command(self, *words: Path | str, cwd: Path | None = None) -> str:
        """Run a command, which must succeed, and return what it printed."""
        done = subprocess.run(
            [*map(str, words)],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=self.clean(),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def files(self) -> set[str]:
        """Return everything that is installed: files below site-packages, and commands."""
        found = [
            path
            for folder in (self.site, self.folder / "bin")
            for path in folder.rglob("*")
            if not path.is_dir()
        ]
        return {str(path.relative_to(self.folder)) for path in found}

    def clean(self) -> dict[str, str]:
        return {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("TVC_", "PYTHONPATH", "PIP_FIND_LINKS"))
        }
