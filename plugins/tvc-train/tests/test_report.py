"""The report of a run: one file, opened in a browser without a network."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tvc_train.reporting.report import Mistake, worst_mistakes, write_report
from tvc_train.scores import scores_of

pytest.importorskip("matplotlib")

EVIL = [
    "<script>console.error('run')</script>",
    '"><img src=https://tvc.example/x.png onerror=alert(1)>',
    "cat & dog $x_2$",
    "_hidden\u202e\udc80",
]
"""Names of classes that are markup, a formula, or no text."""

ROWS = [
    {
        "phase": str(epoch // 2), "epoch": str(epoch), "train_loss": str(2.0 / (epoch + 1)),
        "loss": str(1.5 / (epoch + 1)), "accuracy": str(0.5 + epoch / 10), "rate": "0.001",
        "gate/patches.layer3.se": str(epoch / 10), "gate/_odd": "0.0",
    }
    for epoch in range(4)
]  # fmt: skip


class Pictures:
    """Images that need no file."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> torch.Tensor:
        if index % 10 == 3:
            raise OSError("it is gone <b>now</b>")
        return torch.full((3, 40 + index, 300), 4 * index, dtype=torch.uint8)


def opened(browser: Any, path: Path) -> SimpleNamespace:
    """Open a file without a network, and return what the browser has to say about it."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith("data:") else requests.append(r.url))
    page.goto(path.as_uri(), wait_until="load")
    pictures = page.evaluate(
        "Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
    )
    text = page.inner_text("body")
    elements = page.evaluate("Array.from(document.querySelectorAll('*')).map(e => e.tagName)")
    font = page.evaluate("getComputedStyle(document.body).fontFamily")
    context.close()
    return SimpleNamespace(
        said=said, requests=requests, pictures=pictures, text=text, elements=elements, font=font
    )


def write(path: Path, *, num_classes: int = 4, labels: str = "one", **more: Any) -> Path:
    names = [*EVIL, *(f"class {i}" for i in range(num_classes))][:num_classes]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, num_classes, generator=generator) * 3
    targets = torch.randint(0, num_classes, (60,), generator=generator)
    if labels == "many":
        targets = torch.randint(0, 2, (60, num_classes), generator=generator)
    samples = Pictures([f"<i>{EVIL[1]}</i>/{i}.png" for i in range(60)])
    mistakes = worst_mistakes(
        logits, targets, torch.arange(60), samples, classes=names, labels=labels, most=60
    )
    scores = scores_of(logits, targets, classes=names, labels=labels)
    write_report(
        path, scores, title=f"run {EVIL[0]}", facts={"data": EVIL[1]}, rows=ROWS,
        mistakes=mistakes, patches="a table of <patches>", **more,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(("num_classes", "labels"), [(4, "one"), (40, "one"), (4, "many")])
def test_a_browser_shows_all_of_it_without_a_network(
    chromium: Any, tmp_path: Path, num_classes: int, labels: str
) -> None:
    path = write(tmp_path / "report.html", num_classes=num_classes, labels=labels)
    found = opened(chromium, path)
    assert found.said == []
    assert found.requests == [path.as_uri()]
    assert len(found.pictures) > 20
    assert all(done and width > 0 and height > 0 for done, width, height in found.pictures)
    # names are text: there is no element but those of the page
    assert {"SCRIPT", "I", "IFRAME"} & {*found.elements} == set()
    for name in EVIL[:3]:
        assert name in found.text
    assert "\\u202e\\udc80" in found.text
    assert "it is gone <b>now</b>" in found.text
    assert found.font.startswith("system-ui")  # so the style sheet is allowed


def test_the_policy_allows_the_style_sheet_and_no_other(chromium: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text.replace("&#39;", "'")
    other = tmp_path / "other.html"
    other.write_text(text.replace("<style>", "<style>h1 { color: red }", 1), encoding="utf-8")
    assert any("style" in line for line in opened(chromium, other).said)
    third = tmp_path / "third.html"
    third.write_text(text.replace("</body>", "<script>1</script></body>"), encoding="utf-8")
    assert any("script" in line for line in opened(chromium, third).said)


def test_two_reports_of_one_run_are_one(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert a == b


def test_mistakes_are_wrong_and_the_worst_first() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
    targets = torch.tensor([0, 0, 1, 0])  # of images 7, 5, 3, 1 the last three are wrong
    samples = Pictures([str(i) for i in range(8)])
    found = worst_mistakes(
        logits, targets, torch.tensor([7, 5, 3, 1]), samples, classes=["cat", "dog"]
    )
    assert [(each.name, each.true, each.said) for each in found] == [
        ("1", "cat", "dog"), ("3", "dog", "cat"), ("5", "cat", "dog"),
    ]  # fmt: skip
    assert found[1].picture is None and "gone" in found[1].problem
    assert found[0].confidence == pytest.approx(1 / (1 + 2.718281828**-9))


def test_a_report_without_curves_has_none(tmp_path: Path) -> None:
    logits, targets = torch.eye(3), torch.arange(3)
    scores = scores_of(logits, targets, classes=["a", "b", "c"])
    write_report(tmp_path / "r.html", scores, title="t")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No image is classified wrongly" in text and "Training" not in text
    assert len(re.findall("<img ", text)) == 1


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvc_train import extras
    from tvc_train.errors import TrainingError

    monkeypatch.setitem(extras.EXTRAS, "report", ("matplotlib", "not_there_at_all"))
    scores = scores_of(torch.eye(2), torch.arange(2), classes=["a", "b"])
    with pytest.raises(TrainingError, match=re.escape("pip install 'tvc-train[report]'")):
        write_report(tmp_path / "r.html", scores, title="t")
    assert not (tmp_path / "r.html").exists()


def test_a_mistake_says_what_it_is() -> None:
    assert Mistake(name="a", true="b", said="c", confidence=1.0, picture=None).problem == ""
