"""What a library says of its own failure, and what is said of one that is not whole and of a session that is closed."""

from __future__ import annotations

from mpmmu_rt.errors import EngineError


def words_of(error: Exception) -> str:
    """Its message. Of one that is no UTF-8, as it quotes a damaged file, Python has made another error of: the bytes
    are in that, and what can be read of them is what was said."""
    return error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)


def closed() -> EngineError:
    """Also where another thread closes it in the middle of a call."""
    return EngineError("the session is closed, expected an open one", hint="make another Predictor")


def in_part(package: str, hint: str) -> EngineError:
    """Of what an uninstallation leaves: a folder without the package's own code, which Python imports all the same."""
    return EngineError(
        f"the package `{package}` is there in part and holds nothing that runs, expected all of it", hint=hint
    )
