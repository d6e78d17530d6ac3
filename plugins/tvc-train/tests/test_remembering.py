"""What is known of files is used as long as they are what they were."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tvc_train.caching.storing import default_folder
from tvc_train.data import DataReport, DataSettings, files, inspect_data, open_data
from tvc_train.errors import TrainingError


@pytest.fixture
def looked(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the files that are read from now on; all are known already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path(tmp_path / "cache").mkdir()
    time.sleep(0.15)  # one that was changed a moment ago is not remembered
    first = inspected(photos)
    seen: list[str] = []
    real = files.read_bytes

    def noted(path: str) -> bytes:
        seen.append(os.path.relpath(path, photos))
        return real(path)

    monkeypatch.setattr(files, "read_bytes", noted)
    again = inspected(photos)
    assert seen == []
    for part in ("train", "val"):
        one, other = getattr(first.data, part), getattr(again.data, part)
        assert list(one.names) == list(other.names) and one.digest() == other.digest()
    return seen


def inspected(photos: Path, **more: Any) -> DataReport:
    settings = DataSettings.from_mapping({"path": str(photos), **more})
    report = inspect_data(open_data(settings, folder=Path(), seed=0), settings)
    for samples in (report.data.train, report.data.val):
        samples.digest()
    return report


def brighter(path: Path) -> None:
    """Change a pixel, and leave the size of the file and the time of its change as they are."""
    before = path.stat()
    with Image.open(path) as image:
        pixels = np.array(image)
    for value in range(int(pixels[0, 0, 0]) + 1, 256):
        pixels[0, 0, 0] = value
        Image.fromarray(pixels).save(path)
        if path.stat().st_size == before.st_size:
            break
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    """Put another file of the same size and times in its place."""
    other = path.with_name("other.png")
    shutil.copy2(path, other)
    brighter(other)
    other.replace(path)


@pytest.mark.parametrize("change", [brighter, replaced, lambda path: path.write_bytes(b"no image")])
def test_a_changed_file_is_noticed(
    change: Callable[[Path], Any], photos: Path, looked: list[str]
) -> None:
    before = inspected(photos).data.train.digest()
    change(photos / "class1" / "3.png")
    report = inspected(photos)
    assert set(looked) == {"class1/3.png"}
    assert report.problems or report.data.train.digest() != before
    looked.clear()
    inspected(photos)  # which has changed a moment ago
    assert set(looked) == {"class1/3.png"}


def test_a_file_that_was_moved_or_is_new_is_known_by_what_it_is(
    photos: Path, looked: list[str]
) -> None:
    (photos / "class1" / "3.png").rename(photos / "class1" / "moved.png")
    shutil.copy(photos / "class1" / "4.png", photos / "class2" / "new.png")
    inspected(photos, max_bad=9)
    assert {"class1/moved.png", "class2/new.png"} == set(looked)


@pytest.mark.parametrize(
    "more", [{"max_pixels": 10_000}, {"formats": ["png"]}, {"check": "headers"}]
)
def test_what_may_be_decoded_is_looked_at_anew(
    more: dict[str, Any], photos: Path, looked: list[str]
) -> None:
    inspected(photos, **more)
    assert len(set(looked)) == 24
    looked.clear()
    inspected(photos, **more)
    assert looked == []
    inspected(photos, split=0.5)  # other images are held out
    assert looked == []


def test_what_others_can_write_or_is_damaged_is_not_believed(
    photos: Path, tmp_path: Path, looked: list[str]
) -> None:
    (kept,) = (tmp_path / "cache" / "tvc" / "pictures").iterdir()
    whole = kept.read_bytes()
    for place in (40, len(whole) // 2, len(whole) - 9):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        inspected(photos)
        assert len(set(looked)) == 24
        looked.clear()
    inspected(photos)
    assert looked == []  # it was written again
    kept.chmod(0o666)
    inspected(photos)
    assert len(set(looked)) == 24


def test_where_nothing_can_be_kept_all_goes_on(photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert inspected(photos).is_fine


def test_without_a_home_nothing_is_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number."""

    def none(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", none)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert inspected(photos).is_fine
    with pytest.raises(TrainingError, match="no home folder to keep features in: set XDG_CACHE"):
        default_folder()
