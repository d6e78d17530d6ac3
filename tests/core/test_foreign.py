"""The one guard around the code of others."""

from __future__ import annotations

import pytest

from tvc_core import BackboneError, TargetError
from tvc_core.errors import foreign


class Silent(BaseException):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("two\n  lines"), "the network: ValueError: two lines. Do this."),
        (SystemExit(3), "the network: SystemExit: 3. Do this."),
        (StopIteration(), "the network: StopIteration. Do this."),
        (Silent(), "the network: Silent: (its message cannot be printed). Do this."),
    ],
)
def test_anything_that_others_raise_becomes_ours_with_its_cause(
    raised: BaseException, expected: str
) -> None:
    with (
        pytest.raises(BackboneError) as caught,
        foreign(BackboneError, "the network", advice="Do this."),
    ):
        raise raised
    assert str(caught.value) == expected and caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [TargetError("ours"), KeyboardInterrupt()])
def test_our_own_errors_and_the_users_interrupt_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, foreign(BackboneError, "the network"):
        raise raised
    assert caught.value is raised
