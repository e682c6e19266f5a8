"""`python -m mpmmu_rt` is `mpmmu-rt`."""

import sys


def main() -> None:
    """Ctrl-C while the commands are imported takes the two lines that it takes later."""
    try:
        from .cli import main as begin  # noqa: TID251
    except (KeyboardInterrupt, ImportError) as error:
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):  # an extension module calls it its own failure
            raise
        print("error: interrupted; nothing was begun\nhint: the same command starts again", file=sys.stderr)
        sys.exit(130)
    begin()


if __name__ == "__main__":
    main()
