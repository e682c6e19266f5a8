"""What a library says of its own failure."""

from __future__ import annotations


def words_of(error: Exception) -> str:
    """Its message. Of one that is no UTF-8, as it quotes a damaged file, Python has made another error of: the bytes
    are in that, and what can be read of them is what was said."""
    return error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
