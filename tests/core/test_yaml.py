"""Hostile recipe files: limits before construction, seeded mutations, and an audit of what reading
does.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recipe_mutants

from tvc_core import RecipeError
from tvc_core.recipe import Recipe, load_recipe
from tvc_core.written.yaml_text import parse_yaml

VALID = recipe_mutants.VALID[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 1000
    return message[len(str(path.parent)) + 1 :]


def chain(levels: int, width: int) -> str:
    """Return an alias bomb: each level holds the one before it `width` times."""
    lines = [f"l0: &l0 [{', '.join(['x'] * width)}]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


LIMITS = {
    "a byte too many": ("#" * 1_000_001, "larger than the 1,000,000 bytes"),
    "too many entries": (
        "".join(f"k{n}: 1\n" for n in range(5001)),
        "more than the 10,000 entries",
    ),
    "too deep in flow": ("a: " + "[" * 51, "1:53: nested deeper than the 50 levels"),
    "too deep in blocks": ("- " * 51 + "x", "nested deeper than the 50 levels"),
    "too many brackets": ("[" * 999_999, "nested deeper than the 50 levels"),
    "too many aliases": ("a: &a x\nb: [" + "*a, " * 101 + "]", "2:405: more than the 100 aliases"),
    "an alias bomb": (chain(9, 9), "its aliases expand to more than the 10,000 values"),
    "a long value": ("name: " + "x" * 10_001, "1:7: a value longer than the 10,000 characters"),
    "a long key": (f"? {'k' * 10_001}\n: 1", "1:3: a value longer than the 10,000 characters"),
    "a list that holds itself": ("a: &a [*a]", "nested deeper than the 50 levels"),
    "a mapping that holds itself": ("a: &a {b: *a}", "nested deeper than the 50 levels"),
    "a key that holds itself": ("&a {? *a : 1}", "nested deeper than the 50 levels"),
    "a merge key": ("a: &a {x: 1}\nb: {<<: *a}", "2:5: merge keys ('<<') are not allowed"),
    "a list of merge keys": (
        "a: &a {x: 1}\nb: {<<: [*a, *a]}",
        "2:5: merge keys ('<<') are not allowed",
    ),
    "two documents": (
        "backbone: r\n---\nbackbone: r\n",
        "2:1: not YAML: expected a single document",
    ),
    "an undefined alias": ("a: *nobody", "1:4: not YAML: found undefined alias 'nobody'"),
    "a NUL byte": ("a: b\nb: \0", "2:4: not YAML: the character 0x0000 is not allowed"),
    "a control character": (
        "a: b\nb: \x1b[2J",
        "2:4: not YAML: the character 0x001b is not allowed",
    ),
    "half a surrogate pair, escaped": (
        'a: "\\ud800"',
        "1:4: '\\ud800' has half of a surrogate pair",
    ),
    "bytes that are no UTF-8": (b"a: b\nb: \xff", "2:4: the recipe is not UTF-8 text (byte 8)"),
    "UTF-16": ("backbone: r\n".encode("utf-16"), "1:1: the recipe is not UTF-8 text (byte 0)"),
    "an escape beyond Unicode": ('a: "\\U00110000"', "not YAML"),
    "an escape beyond integers": ('a: "\\UFFFFFFFF"', "not YAML"),
    "a version of 5,000 digits": ("%YAML 1." + "9" * 5000 + "\n---\na: b\n", "not YAML"),
    "an empty file": ("", "the recipe is empty"),
    "a comment alone": ("# nothing\n", "the recipe is empty"),
    "a tab as indentation": ("a:\n\tb: 1", "2:1: not YAML"),
    "an open quote": ('a: "b', "1:6: not YAML"),
    "an open list": ("a: [1, 2", "1:9: not YAML"),
    "a timestamp": (
        "a: 2001-12-14t21:59:43.10-05:00",
        "is a timestamp in YAML, which recipes do not have; put it in quotes",
    ),
    "an equals sign": ("a: =", "'=' is a value in YAML"),
    "a number as key": ("1: a", "1:1: the key '1' reads as 1, not as text; put it in quotes"),
    "a truth value as key": ("on: a", "the key 'on' reads as True"),
    "null as key": ("~: a", "the key '~' reads as None"),
    "a list as key": ("? [a, b]\n: 1", "reads as ['a', 'b'], not as text"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "1:4: the number '999"),
    "a number beyond 64 bits": (
        "a: 9223372036854775808",
        "1:4: the number '9223372036854775808' is too large",
    ),
    "a hexadecimal of 36,000 bits": ("a: 0x" + "f" * 9000, "1:4: YAML reads '0xfff"),
    "an octal": ("a: 010", "1:4: YAML reads '010' as another number"),
    "a sexagesimal": ("a: 190:20:30", "YAML reads '190:20:30' as another number"),
    "a sexagesimal float": ("a: 190:20:30.15", "YAML reads '190:20:30.15' as another number"),
    "a binary without digits": ("a: 0b_", "YAML reads '0b_' as another number"),
}
TAGS = [
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!binary aGk=",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!int ''",
    "!!int a",
    "!!float ''",
    "!!bool a",
    "!!null a",
    "!!timestamp a",
    "!!str 3",
    "!own 3",
    "! 3",
    "!!int [3]",
    "!!map []",
]


@pytest.mark.parametrize("case", LIMITS)
def test_what_exceeds_a_limit_or_is_ambiguous_is_refused(path: Path, case: str) -> None:
    content, said = LIMITS[case]
    assert said in refused(path, content)


@pytest.mark.parametrize("value", TAGS)
def test_no_tag_whatever_is_allowed(path: Path, value: str) -> None:
    assert ":2:7: tags (" in refused(path, f"backbone: r\nname: {value}\n")


@pytest.mark.parametrize(
    "content",
    [
        "backbone: {name: r, options: {a: " + "[" * 46 + "]" * 46 + "}}",
        "backbone: {name: r, options: {a: &a x, b: [" + ", ".join(["*a"] * 100) + "]}}",
        "backbone: {name: r, options: {a: " + "x" * 10_000 + "}}",
        "backbone: r\n#" + "x" * (1_000_000 - 13),
        "backbone: {name: r, options: {a: 9223372036854775807, b: -9223372036854775807}}",
    ],
    ids=["deep", "aliases", "long value", "large file", "large numbers"],
)
def test_what_stays_just_within_a_limit_is_accepted(path: Path, content: str) -> None:
    path.write_text(content)
    assert load_recipe(path).backbone == "r"


@pytest.mark.parametrize(
    "content",
    [
        "\n" * 999_999,
        " " * 999_999,
        "a: " + "b " * 499_990,
        "- " * 499_999,
        "? " * 499_999,
        "!" * 999_999,
        "&" + "a" * 999_990,
        "{" + "a " * 499_000 + ": 1}",
        chain(90, 9),
        "{<<: " * 40,
        '"' + "\\x41" * 249_000 + '"',
    ],
    ids=range(11),
)
def test_a_file_within_the_size_limit_is_refused_within_seconds(path: Path, content: str) -> None:
    start = time.process_time()
    refused(path, content)
    assert time.process_time() - start < 15


def test_an_alias_within_the_limits_is_plain_data_in_both_places(path: Path) -> None:
    path.write_text("backbone:\n  name: r\n  patches:\n    a: &p {wrap: se}\n    b: *p\n")
    assert [(p.target, p.block) for p in load_recipe(path).patches] == [("a", "se"), ("b", "se")]


def test_every_value_has_its_marks() -> None:
    data, place = parse_yaml("a: 1\nb:\n  - x\n  - c:\n      2\n", "f")
    assert data == {"a": 1, "b": ["x", {"c": 2}]}
    at = {path: [str(mark) for mark in both] for path, both in (place.marks or {}).items()}
    assert at[()] == ["f:1:1", "f:1:1"] and at["a",] == ["f:1:1", "f:1:4"]
    assert at["b",] == ["f:2:1", "f:2:1"]  # what begins on a later line is found by its key
    assert at["b", 0] == ["f:3:5", "f:3:5"] and at["b", 1, "c"] == ["f:4:5", "f:4:5"]


# -- seeded mutations ------------------------------------------------------------------------------

JUNK = [
    "",
    "~",
    "true",
    "-1",
    "0",
    "1e309",
    ".nan",
    "[]",
    "{}",
    "[[]]",
    "&a",
    "*a",
    "!!int x",
    "<<: *a",
    "'",
    '"',
    "\\",
    ": ",
    "- ",
    "? ",
    "#",
    "|\n",
    ">\n",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "\t",
    "\0",
    "\ud800",
    "\ufeff",
    "é",
    "0x",
    "1:2:3",
    "@",
    "`",
    "2001-01-01",
    "9" * 400,
    "[" * 60,
    "{a: " * 60,
    "\r",
    "\x85",
    "\u2028",
    "name",
    "type",
    "wrap",
    "backbone",
]


def mutate_structure(rng: random.Random) -> bytes:
    """Return the valid recipe with seeded lines taken out, doubled, moved, indented or with other
    values and keys.
    """
    lines = VALID.splitlines()
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(lines))
        line = lines[place]
        key, _, value = line.partition(": ")
        indent = line[: len(line) - len(line.lstrip())]
        wrong = rng.choice(JUNK)
        lines[place : place + 1] = rng.choice(
            [
                [],
                [line, line],
                [f"  {line}"],
                [line[2:]],
                [lines[rng.randrange(len(lines))]],
                [f"{key}: {wrong}"],
                [f"{indent}{wrong}: {value}"],
                [line, f"{indent}unknown_key: 1"],
                [f"{key}x: {value}"],
                [f"{key}: [{value}]"],
                [f"{key}: {{{value}: 1}}"],
                [f"{key}: '{value}'"],
            ]
        )
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutant(seed: int) -> bytes:
    rng = random.Random(seed)
    return recipe_mutants.mutate_text(rng, VALID) if seed % 2 else mutate_structure(rng)


@pytest.mark.parametrize("start", range(0, 500, 50))
def test_nothing_but_a_recipe_error_escapes_from_seeded_malformed_recipes(
    path: Path, start: int
) -> None:
    errors = 0
    for seed in range(start, start + 50):
        path.write_bytes(mutant(seed))
        try:
            assert isinstance(load_recipe(path), Recipe)
        except RecipeError as error:
            assert str(error).startswith(str(path)), seed
            assert len(str(error)) < 1000, seed
            errors += 1
    assert errors > 25, "the mutations are too harmless to show anything"


def test_the_recipe_that_is_mutated_is_valid(path: Path) -> None:
    path.write_text(VALID)
    assert len(load_recipe(path).patches) == 3


# -- what reading does to the world ----------------------------------------------------------------

AUDIT = """
import pathlib, random, sys
sys.path[:0] = [sys.argv[1], str(pathlib.Path(sys.argv[1]).parent)]
import test_yaml
from tvc_core import RecipeError
from tvc_core.recipe import load_recipe

files = sorted(pathlib.Path(sys.argv[2]).glob("*.yaml"))
warm = files[0]
try:
    load_recipe(warm)
except RecipeError:
    pass
load_recipe(warm.with_name("valid.yml"))
try:  # which plugins claim a section: looked up where a key is not the core's
    load_recipe(warm.with_name("section.yml"))
except RecipeError:
    pass
seen, modules = [], set(sys.modules)

def hook(event, arguments):
    if event == "open":
        mode = arguments[1]
        if mode is not None and mode not in ("r", "rb"):
            seen.append((event, arguments))
        if str(arguments[0]) not in allowed and ".dist-info" not in str(arguments[0]):
            seen.append((event, arguments))
    elif event in ("os.listdir", "os.scandir"):
        pass  # what is installed
    elif event.split(".")[0] in (
        "socket", "subprocess", "os", "shutil", "ctypes", "urllib", "tempfile", "pty"
    ):
        seen.append((event, arguments))
    elif event in (
        "import", "exec", "compile", "code.__new__", "marshal.loads", "pickle.find_class"
    ):
        seen.append((event, arguments))

allowed = {str(file) for file in files}
sys.addaudithook(hook)
refused = 0
for file in files:
    try:
        load_recipe(file)
    except RecipeError:
        refused += 1
if sys.argv[3] == "defect":
    import colorsys
new = set(sys.modules) - modules
watched, seen = seen, []
print(len(files), refused, sorted(new), watched)
"""


def audit(folder: Path, defect: str) -> str:
    for seed in range(500):
        (folder / f"{seed}.yaml").write_bytes(mutant(seed))
    (folder / "tags.yaml").write_text('backbone: !!python/object/apply:os.system ["touch pwned"]\n')
    (folder / "module.yaml").write_text(
        "backbone: {name: 'antigravity:fly', options: {factory: 'colorsys:rgb_to_hsv'}}\n"
    )
    (folder / "valid.yml").write_text(VALID)
    (folder / "section.yml").write_text(f"{VALID}\nunheard_of: 1\n")
    command = [sys.executable, "-c", AUDIT, str(Path(__file__).parent), str(folder), defect]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_malformed_recipes_imports_writes_connects_and_starts_nothing(
    tmp_path: Path,
) -> None:
    count, refused, rest = audit(tmp_path, "none").split(maxsplit=2)
    assert int(count) == 502 and int(refused) > 250
    assert rest == "[] []"
    assert not (tmp_path / "pwned").exists()


def test_the_audit_would_see_an_import(tmp_path: Path) -> None:
    output = audit(tmp_path, "defect")
    assert "['colorsys']" in output and "('import', ('colorsys'" in output
