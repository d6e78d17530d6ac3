"""The documentation is true: code runs, output is what is shown, links lead somewhere, tables are
the code's.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import torchvision

import tvc_core
from tvc_core import (
    BackboneError,
    BackboneSpec,
    BlockSpec,
    HybridBuilder,
    Registry,
    TvcError,
    WeightsError,
    hookspecs,
)
from tvc_core.registry.discovery import HOOKS

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FAQ = ROOT / "docs" / "faq.md"
FAQS = [FAQ, ROOT / "docs" / "plugin-authors" / "faq.md"]

FIRST_RUNS = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorial").glob("*.md"))]
FIRST_RUNS += sorted((ROOT / "docs" / "how-to").glob("*.md"))
"""Pages whose first example is what a reader copies: it runs without a network, on a machine that
has what `make demo` installs and where no weights were ever downloaded.
"""

INFO_STRINGS = {
    "python": "run in the page's namespace, or written to a file where its first line is '# file: "
    "NAME'",
    "python no-run": "not run; its first line is a comment that says why",
    "python needs MODULE": "run by itself where the module is installed",
    "yaml": "written to a file where its first line is '# file: NAME'",
    "toml": "written to a file where its first line is '# file: NAME'",
    "console": "each line '$ tvc ...' is run",
    "sh": "not run: installation and make",
    "text": "not run",
    "text output": "compared with what the Python block before it printed",
}
NEEDS = "python needs "
SMALL = {
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "efficientnet_lite0",
} | {"swin_t"}
"""Networks that code blocks may name: others take too long to build on a small machine."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def file(self) -> str | None:
        found = re.match(r"# file: (\S+)\n", self.text)
        return found[1] if found else None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> tuple[Block, ...]:
    return blocks_in(page, page.read_text(encoding="utf-8"))


@functools.cache
def blocks_in(page: Path, text: str) -> tuple[Block, ...]:
    found: list[Block] = []
    info, start, lines = None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(.*)", line)
        if fence is None:
            lines.append(line)
        elif info is None:
            info, start, lines = fence[1].strip(), number, []
        else:
            found.append(Block(page, start, info, "\n".join(lines) + "\n"))
            info = None
    assert info is None, f"{page}: a block that is not closed, from line {start}"
    return tuple(found)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_blocks(*infos: str) -> list[Path]:
    return [page for page in PAGES if any(block.info in infos for block in blocks_of(page))]


def prose_of(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)


# -- code ------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, on sys.path; afterwards environment, modules and random state are
    what they were.
    """
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def refuse(url: str, *_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("tvc_core.weights.download.urlopen", refuse)
    modules, environment = set(sys.modules), dict(os.environ)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield folder
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def supply_weights(
    desk: Path, made_up: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], None]:
    """Return a function under which a page's downloads of official files give random checkpoints,
    made when asked for.
    """

    def supply(page: Path) -> None:
        code = "\n".join(b.text for b in blocks_of(page) if b.info in ("python", "yaml", "console"))
        specs = [
            offer.spec
            for offer in Registry().all(BackboneSpec)
            if re.search(rf"\b{offer.spec.name}\b", code)
        ]
        names = {spec.name for spec in specs}
        assert names <= SMALL, (
            f"{page_id(page)}: use a small network in code that runs, not {sorted(names - SMALL)}"
        )
        members = {
            torchvision.models.get_model_weights(spec.name)[
                weights.name
            ].url: f"{spec.name}:{weights.name}"
            for spec in specs
            if spec.origin == "torchvision"
            for weights in spec.weights
        }
        if members:
            monkeypatch.setattr(
                "tvc_core.weights.cache.download", lambda url, *_, **__: made_up(members[url])
            )
            made_up()

    return supply


def write_file(block: Block) -> bool:
    if block.file is None:
        return False
    Path(block.file).parent.mkdir(parents=True, exist_ok=True)
    Path(block.file).write_text(block.text, encoding="utf-8")
    return True


def run_python(block: Block, namespace: dict[str, object]) -> str:
    padded = "\n" * block.line + block.text  # tracebacks name the page's line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(padded, str(block.page), "exec"), namespace)
    return printed.getvalue()


def tidy(text: str) -> list[str]:
    # the tests' checkpoints are made up
    text = text.replace(", file hash not compared (TVC_VERIFY_WEIGHTS=0)", "")
    return [line.rstrip() for line in text.strip().splitlines()]


@contextlib.contextmanager
def without_a_network() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(Path.cwd() / "empty"))
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr("tvc_core.weights.cache.download", refuse)
        yield


def run_page(page: Path) -> dict[int, str]:
    """Run a page's Python blocks in one namespace, and return what each printed by its line."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    printed: dict[int, str] = {}
    last: str | None = ""
    offline = page in FIRST_RUNS
    for block in blocks_of(page):
        if block.info in ("python", "yaml", "toml") and write_file(block):
            continue
        if block.info.startswith("python") and offline:
            assert block.info == "python", f"{block.where}: the first example does not run here"
        if block.info == "python":
            with without_a_network() if offline else contextlib.nullcontext():
                last = printed[block.line] = run_python(block, namespace)
            offline = False
        elif block.info.startswith(NEEDS):
            last = None  # `test_blocks_that_need_other_tools_run` runs it
        elif block.info == "text output" and last is not None:
            assert tidy(last) == tidy(block.text), (
                f"{block.where}: the block before it printed\n{last}"
            )
    return printed


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page in {*FIRST_RUNS, *with_blocks("python")} - {*FAQS}],
    ids=page_id,
)
def test_python_blocks_run(page: Path, supply_weights: Callable[[Path], None]) -> None:
    supply_weights(page)
    run_page(page)


def test_a_first_example_gets_no_weights(
    desk: Path, tmp_path: Path, made_up: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom tvc_core import HybridBuilder\n"
        "HybridBuilder().from_torchvision('mobilenet_v3_small')\n```\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    made_up("mobilenet_v3_small:IMAGENET1K_V1")
    run_page(page)
    monkeypatch.setattr(sys.modules[__name__], "FIRST_RUNS", [page])
    with pytest.raises(TvcError, match="no network"):
        run_page(page)


def blocks_with_needs() -> list[tuple[Block, str | None]]:
    """Return the blocks that need another tool, each with what it is to print."""
    found: list[tuple[Block, str | None]] = []
    for page in PAGES:
        blocks = blocks_of(page)
        for block, after in zip_longest(blocks, blocks[1:]):
            if block.info.startswith(NEEDS):
                shown = after.text if after and after.info == "text output" else None
                found.append((block, shown))
    return found


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("block", "shown"), [pytest.param(*each, id=each[0].where) for each in blocks_with_needs()]
)
def test_blocks_that_need_other_tools_run(block: Block, shown: str | None, desk: Path) -> None:
    pytest.importorskip(block.info.removeprefix(NEEDS), reason="`make test-interop` installs it")
    printed = run_python(block, {"__name__": "__docs__"})
    if shown is not None:
        assert tidy(printed) == tidy(shown), block.where


@pytest.mark.parametrize("page", with_blocks("console"), ids=page_id)
def test_console_blocks_run(page: Path, supply_weights: Callable[[Path], None]) -> None:
    if importlib.util.find_spec("tvc_cli") is None:
        pytest.skip("tvc-cli is not installed")
    from click.testing import CliRunner
    from tvc_cli.commands import tvc

    supply_weights(page)
    for block in blocks_of(page):
        if block.info == "yaml":
            write_file(block)
        if block.info != "console":
            continue
        for line in block.text.splitlines():
            if not line.startswith("$ "):
                continue
            words = shlex.split(line[2:], comments=True)
            settings = {}
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                settings[name] = value
            assert words[0] == "tvc", f"{block.where}: a console block runs tvc only: {line}"
            stdin = None
            if "<" in words:
                stdin = Path(words[-1]).read_text(encoding="utf-8")
                words = words[: words.index("<")]
            result = CliRunner().invoke(tvc, words[1:], env=settings, input=stdin)
            assert result.exit_code == 0, (
                f"{block.where}: {line}\n{result.output}{result.exception!r}"
            )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_known_kind(page: Path) -> None:
    for block in blocks_of(page):
        info = re.sub(r"(?<=^python needs )\w+$", "MODULE", block.info)
        assert info in INFO_STRINGS, (
            f"{block.where}: {block.info!r} is none of {sorted(INFO_STRINGS)}"
        )
        if block.info == "python no-run":
            reason = re.match(r"# not run: \w+", block.text)
            assert reason, f"{block.where}: the first line is a comment '# not run: REASON'"


def test_a_wrong_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n```text output\n2\n```\n")
    with pytest.raises(AssertionError, match="printed"):
        run_page(page)
    page.write_text("```python\nraise KeyError('x')\n```\n")
    with pytest.raises(KeyError):
        run_page(page)


# -- links, names, tables --------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(
        r"^#+ (.+)$",
        re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S),
        flags=re.M,
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        assert goal.exists(), f"{page_id(page)}: no file for the link {target}"
        if anchor and goal.suffix == ".md":
            assert anchor in anchors_of(goal), f"{page_id(page)}: no heading for the link {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page))]
        todo += [
            (page.parent / link).resolve()
            for link in links
            if link and not re.match(r"[a-z]+:", link)
        ]
    assert not set(PAGES) - reached


def test_the_index_links_every_page_that_is_written_by_hand() -> None:
    """Directly, so that a reader finds a page by what its line says."""
    index = ROOT / "docs" / "index.md"
    links = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(index))
    }
    written = {page for page in PAGES if page.parent.name != "reference"} - {index}
    assert [page_id(page) for page in sorted(written - links)] == []


def generator() -> object:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    made = generator().pages()
    folder = ROOT / "docs" / "reference"
    pages = {name for name in made if "/" not in name}  # what else is made goes elsewhere
    # `make sweep` writes that one
    assert pages | {"sweep.md"} == {path.name for path in folder.iterdir()}
    stale = [
        name for name, text in made.items() if (folder / name).read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run `make docs`, or python docs/generate.py: {stale}"


def test_every_public_name_is_documented() -> None:
    """On a page written by hand: the reference is made from `__all__` and has every name."""
    written = [page for page in PAGES if page.parent != ROOT / "docs" / "reference"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in written)
    assert [name for name in tvc_core.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_page_on_attention_names_every_block() -> None:
    page = (ROOT / "docs" / "how-to" / "attention.md").read_text(encoding="utf-8")
    offered = {
        offer.spec.name for offer in Registry().all(BlockSpec) if offer.owner == "tvc-attention"
    }
    assert set(re.findall(r"`(\w+)`", page.partition("\n## ")[0])) == offered


def test_hooks_in_the_documentation_are_those_of_the_code() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    packages = {path.name for path in (ROOT / "plugins").glob("*/tvc_*")} | {
        "tvc_core",
        "tvc_patches",
    }
    declared = {name for name in vars(hookspecs) if name.startswith("tvc_")}
    # tvc_block is the FAQ's misspelt hook, tvc_branch, tvc_computes_as and tvc_weights are
    # attributes of blocks and networks; tvc_cli_commands and tvc_recipes_... are the hooks of
    # plugins' kinds
    named = (
        set(re.findall(r"\btvc_[a-z_]+", text))
        - (packages - declared)
        - {"tvc_block", "tvc_branch", "tvc_cli_commands", "tvc_computes_as", "tvc_weights"}
        - {"tvc_export_exporters", "tvc_recipes_sections", "tvc_recipes_templates"}
        - {"tvc_train_methods"}
    )
    assert named == declared == set(HOOKS)


def test_environment_switches_in_the_documentation_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tvc_core").rglob("*.py"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    switches = set(re.findall(r"[\"'](TVC_[A-Z_]+)[\"']", code)) - {
        "TVC_API",
        "TVC_KINDS",
        "TVC_OWNER",
    }
    assert (
        set(re.findall(r"\bTVC_[A-Z_]+", text)) - {"TVC_API", "TVC_KINDS", "TVC_OWNER"} == switches
    )


def test_make_targets_in_the_documentation_exist() -> None:
    makefile = ROOT / "Makefile"
    if not makefile.exists():
        pytest.skip("no Makefile beside the documentation")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile.read_text(encoding="utf-8"), flags=re.M))
    for page in PAGES:
        code = "\n".join(b.text for b in blocks_of(page) if b.info == "sh")
        inline = re.findall(r"`make ([a-z-]+)`", prose_of(page))
        for target in [*inline, *re.findall(r"^make ([a-z-]+)", code, flags=re.M)]:
            assert target in targets, f"{page_id(page)}: make {target}"


# -- the FAQ ---------------------------------------------------------------------------------------


def faq_sections(faq: Path) -> dict[str, list[Block]]:
    """Return the blocks under each heading of a FAQ that is an error text."""
    lines = faq.read_text(encoding="utf-8").splitlines()
    titles = [(number, line[3:]) for number, line in enumerate(lines, 1) if line.startswith("## ")]
    ends = [*(number for number, _ in titles[1:]), len(lines) + 1]
    blocks = blocks_of(faq)
    return {
        title.strip("`"): [b for b in blocks if start < b.line < end]
        for (start, title), end in zip(titles, ends, strict=True)
        if title.startswith("`")
    }


def pieces(heading: str) -> list[str]:
    return [piece.strip() for piece in heading.split("...") if piece.strip()]


def literals() -> str:
    """Return every string of tvc's code, with ... for what is put in, one a line."""
    found = []
    for path in [*(ROOT / "tvc_core").rglob("*.py"), *(ROOT / "plugins").glob("*/tvc_*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("faq", FAQS, ids=page_id)
def test_faq_headings_are_error_texts(faq: Path, supply_weights: Callable[[Path], None]) -> None:
    supply_weights(faq)
    printed = run_page(faq)
    source = literals()
    assert len(faq_sections(faq)) > 15
    for heading, blocks in faq_sections(faq).items():
        shown = "".join(printed.get(block.line, "") for block in blocks)
        text = shown if shown else source
        lost = [piece for piece in pieces(heading) if piece not in text]
        assert not lost, (
            f"{heading!r}: {lost} is not in "
            f"{'what its code prints' if shown else 'any string of the code'}"
        )


def test_every_error_class_stands_in_the_faq() -> None:
    """Under a heading: the page's first block imports all of them."""
    text = FAQ.read_text(encoding="utf-8").partition("\n## ")[2]
    errors = [
        n
        for n in tvc_core.__all__
        if isinstance(getattr(tvc_core, n), type) and issubclass(getattr(tvc_core, n), TvcError)
    ]
    assert [name for name in errors if name not in text] == ["TvcError"], "their base class"


@pytest.mark.filterwarnings("ignore:The plugin :tvc_core.RegistryWarning")
def test_faq_failed_plugin(fake_distribution: Callable[..., Path]) -> None:
    fake_distribution("acme-blocks", "raise ImportError('no module named acme')")
    with pytest.raises(
        TvcError,
        match=r"acme-blocks 1\.0 is installed but failed: ImportError: no module named acme",
    ):
        HybridBuilder().create_block("acme-blocks:gate", 8)


def test_faq_wrong_hash(
    made_up: Callable[..., dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up("resnet18")
    monkeypatch.setenv("TVC_VERIFY_WEIGHTS", "1")
    with pytest.raises(WeightsError, match="its SHA-256 starts with"):
        HybridBuilder().from_torchvision("resnet18")


def test_faq_no_download(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    with pytest.raises(
        WeightsError, match=r"cannot be downloaded from .*: no route to host\. Put the file into"
    ):
        HybridBuilder().from_torchvision("resnet18")


def test_replicas_of_data_parallel_are_refused_as_the_faq_says() -> None:
    model = HybridBuilder().from_torchvision(
        "resnet18", weights=None, patches={"layer3": {"wrap": "se"}}
    )
    with pytest.raises(BackboneError, match="DistributedDataParallel"):
        model._replicate_for_data_parallel()
