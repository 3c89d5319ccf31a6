"""Durations in the unit that a reader would choose."""

from __future__ import annotations

import pytest

from pw.io.progress import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (98, "98 s"),
        (504, "8.4 min"),
        (34.5 * 3600, "34.5 h"),
        (109_105.6 * 60, "75.8 days"),
        (3e9, "95.1 years"),
    ],
)
def test_a_duration_is_in_a_human_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
