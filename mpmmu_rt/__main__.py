"""`python -m mpmmu_rt` is `mpmmu-rt`."""

from .cli import main  # noqa: TID251

main()
