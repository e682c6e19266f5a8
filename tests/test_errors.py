from __future__ import annotations

import copy
import pickle
import re

import pytest

from mpmmu_rt import errors
from mpmmu_rt.errors import DigestMismatch, Interrupted, MpmmuError, ParityError, UnknownTarget, UsageError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MpmmuError)]


def test_exit_codes() -> None:
    codes = {kind: kind.exit_code for kind in KINDS}
    assert {kind for kind, code in codes.items() if code == 2} == {UsageError, UnknownTarget}
    assert {kind for kind, code in codes.items() if code == 3} == {DigestMismatch, ParityError}
    assert {kind for kind, code in codes.items() if code == 130} == {Interrupted}
    assert set(codes.values()) == {1, 2, 3, 130}


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"^ +(?:│ +)?(?:[├└]── )?([A-Z]\w+)", errors.__doc__ or "", flags=re.MULTILINE)
    assert set(drawn) == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_processes_and_copies_with_its_hint(kind: type[MpmmuError]) -> None:
    error = kind("got 1, expected 2", hint="try 2")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.hint) == ("got 1, expected 2", "try 2")


def test_the_hint_may_be_empty() -> None:
    assert MpmmuError("got 1, expected 2").hint == ""
