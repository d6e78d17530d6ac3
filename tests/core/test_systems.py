"""What other systems would trip over and no run on this one shows: calls that only POSIX has, files
in the encoding of the place, and open files that are renamed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for pattern in ("tvc_core/**/*.py", "plugins/*/t*_*/**/*.py", "examples/**/*.py", "docs/*.py")
    for path in ROOT.glob(pattern)
    if "tests" not in path.relative_to(ROOT).parts
)

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": {
        *("chown", "fchown", "lchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getuid"),
        *("getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "killpg", "mkfifo"),
        *("nice", "openpty", "posix_fallocate", "posix_spawn", "pread", "pwrite", "setgid"),
        *("register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile", "setpgid"),
        *("setsid", "setuid", "sync", "sysconf", "uname", "wait", "wait3", "wait4", "waitid"),
        *("WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WTERMSIG", "WNOHANG", "O_CLOEXEC"),
        *("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "fdatasync", "lockf", "fchmod"),
    },
    "signal": {
        *("alarm", "setitimer", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "sigwait"),
        *("siginterrupt", "sigpending", "sigtimedwait", "SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT"),
        *("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGWINCH"),
    },
    "time": {"tzset", "pthread_getcpuclockid"},
}
"""From Python's documentation: what it marks as available on Unix only."""

FOLDERS = ("/tmp", "/dev/", "/proc/", "/etc/")


def only_on_posix(tree: ast.AST, guarded: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what only POSIX has, except where `if hasattr(os, "fork")` asks before, or an import
    that fails is caught.
    """
    if isinstance(tree, ast.Try) and any(_catches_import(each) for each in tree.handlers):
        tree.body = [each for each in tree.body if not isinstance(each, ast.Import)]
    if isinstance(tree, ast.Import):
        yield from ({name.name for name in tree.names} & MODULES)
    if isinstance(tree, ast.ImportFrom):
        yield from ({tree.module} & MODULES)
        yield from ({name.name for name in tree.names} & NAMES.get(tree.module or "", set()))
    if (
        isinstance(tree, ast.Attribute)
        and isinstance(tree.value, ast.Name)
        and tree.attr in NAMES.get(tree.value.id, set()) - guarded
    ):
        yield f"{tree.value.id}.{tree.attr}"
    if isinstance(tree, ast.Constant) and str(tree.value).startswith(FOLDERS):
        yield str(tree.value)
    for field, value in ast.iter_fields(tree):
        asked = set()
        if isinstance(tree, ast.If) and field == "body":
            asked = asked_for(tree.test)
        elif isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
            asked = asked_for(tree.values[0])
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield from only_on_posix(node, guarded | asked)


def _catches_import(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and ast.unparse(handler.type) == "ImportError"


def asked_for(test: ast.AST) -> set[str]:
    """Return the names for which a condition asks by hasattr."""
    return {
        str(call.args[1].value)
        for call in ast.walk(test)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "hasattr"
        and isinstance(call.args[1], ast.Constant)
    }


def keywords_of(call: ast.Call) -> dict[str, str]:
    return {word.arg or "**": ast.unparse(word.value) for word in call.keywords}


def without_encoding(tree: ast.AST) -> Iterator[str]:
    """Yield calls that read or write text in whatever encoding the system has."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        words = keywords_of(call)
        name = ast.unparse(call.func).rpartition(".")[2]
        owner = ast.unparse(call.func).rpartition(".")[0]
        if "encoding" in words or "**" in words or owner in ("os", "Image", "distribution"):
            continue
        if owner == "Trained" or (name == "write_text" and not owner):  # tvc-train's own
            continue
        given = [ast.unparse(each) for each in call.args]
        mode = words.get("mode", next((each for each in given if _is_mode(each)), "''"))
        binary = "b" in mode
        if name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):
            binary = binary or mode == "''"  # their default
        elif name in ("run", "Popen", "check_output"):
            binary = not {"text", "universal_newlines"} & words.keys()
        elif name not in ("open", "fdopen", "read_text", "write_text"):
            continue
        if not binary:
            yield f"line {call.lineno}: {ast.unparse(call)}"


def _is_mode(text: str) -> bool:
    return text[:1] in "'\"" and bool(text[1:-1]) and set(text[1:-1]) <= set("rwaxbt+")


def open_and_renamed(tree: ast.AST) -> Iterator[str]:
    """Yield what is renamed while a `with` around it holds a file open."""
    for block in ast.walk(tree):
        if isinstance(block, ast.With) and any(
            "open(" in (text := ast.unparse(item.context_expr)) or "TemporaryFile(" in text
            for item in block.items
        ):
            for statement in block.body:
                for call in ast.walk(statement):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                        # str.replace takes two
                        one = call.func.attr in ("replace", "rename") and len(call.args) == 1
                        if one or ast.unparse(call.func) in ("os.replace", "os.rename"):
                            yield f"line {call.lineno}: {ast.unparse(call)}"


CHECKS = (only_on_posix, without_encoding, open_and_renamed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_that_another_system_trips_over(check: object) -> None:
    assert len(FILES) > 100
    found = {
        str(file.relative_to(ROOT)): list(check(ast.parse(file.read_text(encoding="utf-8"))))  # type: ignore[operator]
        for file in FILES
    }
    assert {file: lines for file, lines in found.items() if lines} == {}


def counts(code: str) -> list[int]:
    return [len(list(check(ast.parse(code)))) for check in CHECKS]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os\nos.fork()", [1, 0, 0]),
        ("if hasattr(os, 'fork'):\n    os.fork()", [0, 0, 0]),
        ("if hasattr(os, 'fork'):\n    os.getuid()", [1, 0, 0]),
        ("if hasattr(os, 'fork') and os.fork():\n    pass", [0, 0, 0]),
        ("if ready and os.fork():\n    pass", [1, 0, 0]),
        ("if not ready:\n    signal.alarm(1)", [1, 0, 0]),
        ("import fcntl", [1, 0, 0]),
        ("from signal import SIGALRM", [1, 0, 0]),
        ("Path('/tmp/a')", [1, 0, 0]),
        ("path.read_text()", [0, 1, 0]),
        ("path.read_text(encoding='utf-8')", [0, 0, 0]),
        ("open(path)", [0, 1, 0]),
        ("open(path, 'rb')", [0, 0, 0]),
        ("path.open(mode='a')", [0, 1, 0]),
        ("tempfile.TemporaryFile()", [0, 0, 0]),
        ("tempfile.TemporaryFile('w')", [0, 1, 0]),
        ("subprocess.run(['a'], text=True)", [0, 1, 0]),
        ("subprocess.run(['a'])", [0, 0, 0]),
        ("with path.open('rb') as file:\n    temporary.replace(path)", [0, 0, 1]),
        ("with path.open('rb') as file:\n    name.replace('a', 'b')", [0, 0, 0]),
        ("with tempfile.NamedTemporaryFile() as file:\n    os.replace(a, b)", [0, 0, 1]),
        ("with path.open('rb') as file:\n    pass\ntemporary.replace(path)", [0, 0, 0]),
    ],
)
def test_the_checks_see_what_they_look_for(code: str, expected: list[int]) -> None:
    assert counts(code) == expected


MAKERS = {
    "arange", "empty", "eye", "full", "linspace", "normal", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip


def without_device(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that make a tensor wherever torch's default device is."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "torch"
            and node.func.attr in MAKERS
            and not any(each.arg == "device" for each in node.keywords)
        ):
            yield node.lineno


def test_the_core_says_where_its_tensors_are() -> None:
    """A user's `torch.set_default_device("cuda")` puts elsewhere what is then mixed with others."""
    files = [each for each in (ROOT / "tvc_core").rglob("*.py") if "testing" not in each.parts]
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in files
        for line in without_device(ast.parse(file.read_text("utf-8")))
    ]
    assert not found
    assert list(without_device(ast.parse("x = torch.zeros(3)\ny = torch.ones(2, device=z)"))) == [1]
