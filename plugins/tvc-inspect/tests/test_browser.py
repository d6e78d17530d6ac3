"""Pages in Chromium, opened as files, offline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from tvc_inspect import GateLog, PageError, inspect_model, inspect_page
from tvc_inspect.page import render_page

from tvc_core import HybridBuilder, HybridModel, Recipe

HOSTILE = "<img src=x onerror=document.title='owned'></script><script>alert(1)</script>&\"'"

Open = Callable[[Path], Any]


class Opened:
    """A page that was opened, with what it asked for and said."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append("a dialog"), dialog.dismiss()))
        page.goto(path.as_uri())
        self.until("document.documentElement.dataset.ready")
        self.ready = float(page.evaluate("document.documentElement.dataset.ready"))

    def until(self, expression: str) -> None:
        """Wait until an expression is true. Playwright's own way to wait lets the page read text as
        a script when it has to look twice, which the page's policy stops.
        """
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(10)

    def rows(self) -> list[str]:
        found: list[str] = self.page.locator("#modules .tabulator-row .path").all_inner_texts()
        return found


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[[Path], Opened]]:
    context = chromium.new_context(offline=True, viewport={"width": 1400, "height": 900})
    yield lambda path: Opened(context.new_page(), path)
    context.close()


def _model(name: str = "resnet18", **given: Any) -> HybridModel:
    torch.manual_seed(0)
    return HybridBuilder().from_backbone(name, weights=None, **given)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it: another model, a photo, a log."""
    folder = tmp_path_factory.mktemp("pages")
    model = _model(patches={"layer2": {"wrap": "cbam_block"}, "layer3": {"wrap": "se"}})
    log = GateLog(folder / "gates.jsonl")
    for _ in range(3):
        log(model, torch.randn(2, 3, 64, 64))
    Image.new("RGB", (300, 260), (90, 140, 60)).save(folder / "photo.png")
    other = _model(patches={"layer3": {"wrap": "se"}})
    text = inspect_page(
        model, other, photo=folder / "photo.png", gates=folder / "gates.jsonl", size=64,
        source="recipe.yaml", notes=["a note"],
    )  # fmt: skip
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


def test_a_page_asks_for_nothing_else_and_says_nothing(
    opened: Callable[[Path], Opened], page: Path
) -> None:
    found = opened(page)
    assert found.requests == [page.as_uri()] and found.said == []
    policy = found.page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy


def test_the_policy_stops_what_is_put_into_the_page(
    opened: Callable[[Path], Opened], page: Path, tmp_path: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    changed = text.replace("</main>", "</main><script>document.title = 'owned'</script>")
    (tmp_path / "changed.html").write_text(changed, encoding="utf-8")
    found = opened(tmp_path / "changed.html")
    assert found.page.title() != "owned"
    assert any("Content Security Policy" in said for said in found.said)


def test_the_table_has_the_numbers_of_the_facts(
    opened: Callable[[Path], Opened], page: Path
) -> None:
    found = opened(page)
    model = _model(patches={"layer2": {"wrap": "cbam_block"}, "layer3": {"wrap": "se"}})
    facts = {row.path: row for row in inspect_model(model, size=64, repeats=1).paths}
    found.page.fill("#search", "layer4.1.conv")
    found.until("document.querySelector('#modules').dataset.found")
    assert found.rows() == ["layer4.1.conv1", "layer4.1.conv2"]
    row = found.page.locator("#modules .tabulator-row").first
    for field in ("parameters", "trainable", "flops", "kept", "stride"):
        shown = row.locator(f"[tabulator-field={field}]").inner_text()
        assert shown == f"{getattr(facts['layer4.1.conv1'], field):,}", field
    assert row.locator("[tabulator-field=shape]").inner_text() == "1 x 512 x 2 x 2"
    assert "2 of " in found.page.inner_text("#status")


def test_a_large_page_is_ready_and_searched_soon(
    opened: Callable[[Path], Opened], tmp_path: Path
) -> None:
    facts = inspect_model(
        _model("densenet201", patches={"features.denseblock3": {"wrap": "se"}}), size=64, repeats=1
    )
    text = render_page(facts)
    assert len(text.encode()) < 1_500_000
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    found = min((opened(tmp_path / "page.html") for _ in range(3)), key=lambda one: one.ready)
    assert found.ready < 1000
    waited = found.page.evaluate(
        """() => new Promise((done) => {
          const search = document.getElementById("search");
          const home = document.getElementById("modules");
          const begin = performance.now();
          search.value = "denselayer12 conv";
          search.dispatchEvent(new Event("input"));
          const look = () => home.dataset.found === search.value
            ? requestAnimationFrame(() => done(performance.now() - begin)) : setTimeout(look, 1);
          look();
        })"""
    )
    assert waited < 200
    names = [row.path for row in facts.paths]
    expected = [name for name in names if "denselayer12" in name and "conv" in name]
    assert found.rows() == expected and len(expected) >= 4


def test_by_keyboard_alone(opened: Callable[[Path], Opened], page: Path) -> None:
    found = opened(page)
    keys = found.page.keyboard
    _tab_to(found, "document.activeElement.id === 'search'")
    keys.type("layer3.0.conv1")
    found.until("document.querySelector('#modules').dataset.found")
    _tab_to(found, "document.activeElement.getAttribute('aria-label') === 'copy layer3.0.conv1'")
    keys.press("Enter")
    found.until("document.getElementById('status').textContent.includes('copied')")
    _tab_to(found, "document.activeElement.id === 'search'", back=True)
    keys.press("Control+a")
    keys.press("Control+v")
    assert found.page.input_value("#search") == "layer3.0.conv1"
    keys.press("Control+a")
    keys.press("Delete")
    found.until("document.querySelector('#modules').dataset.found === ''")
    before = found.rows()
    _tab_to(found, "document.activeElement.getAttribute('aria-label') === 'expand'")
    keys.press("Enter")
    found.until(f"document.querySelectorAll('#modules .path').length > {len(before)}")
    # the focus stays at the row, whose button folds it again
    assert found.page.evaluate("document.activeElement.getAttribute('aria-label')") == "collapse"
    keys.press("Enter")
    found.until(f"document.querySelectorAll('#modules .path').length == {len(before)}")
    _tab_to(
        found, "document.activeElement.getAttribute('tabulator-field') === 'parameters'", back=True
    )
    keys.press("Enter")
    found.until(
        "document.querySelector('[role=columnheader][tabulator-field=parameters]')"
        ".getAttribute('aria-sort') !== 'none'"
    )


def _tab_to(found: Opened, there: str, *, back: bool = False) -> None:
    for _ in range(120):
        found.page.keyboard.press("Shift+Tab" if back else "Tab")
        if found.page.evaluate(there):
            return
    raise AssertionError(f"no Tab leads to {there}")


def test_sorting_is_by_number(opened: Callable[[Path], Opened], page: Path) -> None:
    found = opened(page)
    found.page.fill("#search", "layer")
    found.until("document.querySelector('#modules').dataset.found")
    header = found.page.locator("[role=columnheader][tabulator-field=parameters]")
    header.click()
    cells = found.page.locator("#modules .tabulator-row [tabulator-field=parameters]")
    numbers = [int(text.replace(",", "")) for text in cells.all_inner_texts()]
    assert numbers == sorted(numbers) and len(set(numbers)) > 2


def test_nothing_keeps_people_from_using_it(
    opened: Callable[[Path], Opened], page: Path, axe: str
) -> None:
    found = opened(page)
    found.page.evaluate(axe)
    violations = found.page.evaluate(
        "axe.run().then((found) => found.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))"
    )
    assert [each for each in violations if each[0] in ("serious", "critical")] == []


def test_markup_stays_text(opened: Callable[[Path], Opened], tmp_path: Path) -> None:
    odd = type(HOSTILE, (nn.ReLU,), {})  # a class may have any name
    model, other = (
        HybridBuilder().build(
            Recipe(
                backbone="squeezenet1_1",
                weights=None,
                num_classes=2,
                class_names=[HOSTILE, last],
                name=HOSTILE,
            )
        )
        for last in ("b", "c")
    )
    model.features[1].__class__ = odd
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 80), (200, 30, 30)).save(photo)
    text = inspect_page(model, other, photo=photo, size=64, source=HOSTILE, notes=[HOSTILE])
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    found = opened(tmp_path / "page.html")
    assert found.page.inner_text("h1") == HOSTILE == found.page.title()
    found.page.fill("#search", "onerror")
    found.until("document.querySelector('#modules').dataset.found")
    shown = found.page.locator("#modules [role=gridcell][tabulator-field=type]").all_inner_texts()
    assert HOSTILE in shown
    assert found.page.locator("img[src=x]").count() == 0
    assert found.said == []


def test_pictures_and_charts_are_on_the_page(opened: Callable[[Path], Opened], page: Path) -> None:
    found = opened(page)
    images = found.page.locator("figure img")
    assert images.count() == 4  # the photo, the class's map, two gates
    assert all(found.page.evaluate("[...document.images].map((each) => each.naturalWidth > 1)"))
    assert found.page.locator("svg polyline").count() >= 4
    assert "layer2" in found.page.locator("h2:has-text('Compared') ~ div").first.inner_text()


def test_without_the_library_an_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = inspect_model(_model(), size=64, repeats=1)
    monkeypatch.setattr("tvc_inspect.page.VENDOR", "not-there")
    with pytest.raises(PageError, match=r"without npm. Install npm, then run"):
        render_page(facts)


def test_the_page_has_the_license_of_what_it_holds() -> None:
    text = render_page(inspect_model(_model(), size=64, repeats=1))
    assert "Permission is hereby granted" in text and "Oli" in text
    assert json.dumps("sourceMappingURL")[1:-1] not in text
