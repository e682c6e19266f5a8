"""Ids of one person that are written in two ways."""

from __future__ import annotations

import pytest

from mpmmu_rt.people import alike, plain


@pytest.mark.parametrize(
    "names",
    [
        ("P007", "p7", " P 7", "P07", "\uff30\uff17", "P\u200b7"),  # wide letters; a blank of no width
        ("17", "017", "17.0", "17.00"),
        ("Zo\u00eb", "zoe\u0308"),  # one letter, or two that are shown as one
        ("case 1 12", "CASE 1 012"),
        ("P-7", "P\u20137", "p \u2014 07", "P\u20117", "P\u22127"),  # what writing programs make of a hyphen
        ("0", "00"),
    ],
)
def test_what_a_table_changes_is_no_other_person(names: tuple[str, ...]) -> None:
    assert len({plain(name) for name in names}) == 1
    assert alike(["x", *names]) == names[:2]


def test_others_stay_others() -> None:
    names = ["1", "10", "100", "1.5", "1.50", "1 12", "11 2", "P-7", "P7", "7P", "a1b01", "a10b1", "ann", "anna"]
    assert len({plain(name) for name in names}) == len(names)
    assert alike([*names, *names]) is None, "the same id twice is the same id"
