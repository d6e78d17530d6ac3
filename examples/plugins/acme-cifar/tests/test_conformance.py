"""The rules that every plugin keeps, checked by tvc's own kit."""

from __future__ import annotations

from collections.abc import Callable

from tvc_core.testing import parametrize_with_checks


@parametrize_with_checks("acme_cifar.plugin")
def test_conformance(check: Callable[[], None]) -> None:
    check()
