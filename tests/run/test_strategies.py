"""pw.run.strategies: a plain value gets the type of its annotation, or an error names its key."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from pw.io.arguments import ConfigError
from pw.run.strategies import coerce


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (2, int | float, 2),
        (2.5, int | float, 2.5),
        (2, float | int, 2),
        (2, float, 2.0),
        (None, int | float | None, None),
        ("auto", int | Literal["auto"], "auto"),
        ([1, 2], tuple[float, ...] | None, (1.0, 2.0)),
    ],
)
def test_a_value_is_read_as_the_member_of_a_union_that_it_fits(value: Any, annotation: Any, expected: Any) -> None:
    result = coerce(value, annotation, "group.key")
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("two", int | float, "group.key='two': expected a whole number or a number"),
        (True, int | float, "group.key=True: expected a whole number or a number"),
        (float("nan"), int | float, "group.key=nan"),
        (None, int | float, "group.key=None"),
        ("on", int | Literal["auto"], "a whole number or one of auto"),
    ],
)
def test_a_value_that_fits_no_member_is_told_all_of_them(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        coerce(value, annotation, "group.key")
    assert message in str(error.value)
