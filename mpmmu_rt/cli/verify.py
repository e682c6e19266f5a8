from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._report import note, print_json, table


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle to check.")],
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check digests, replay the golden vectors, and prove that no case depends on its batch; exit code 3 if not."""
    from mpmmu_rt.predictor import load
    from mpmmu_rt.verify import verify as run_checks

    with load(bundle, target) as predictor:
        checks = [check.to_json() for check in run_checks(predictor)]
        digest, head, remarks = predictor.bundle.digest, predictor.head_target, predictor.remarks
    passed = all(check["passed"] for check in checks)
    if as_json:
        facts = {"target": target, "head_target": str(head), "remarks": list(remarks), "bundle_digest": digest}
        print_json({"schema": "mpmmu-verify/1", **facts, "passed": passed, "checks": checks})
    else:
        typer.echo(checks_table(checks))
    for remark in remarks:
        note(f"note: {remark}")
    if not passed:
        failed = sum(not check["passed"] for check in checks)
        note(f"error: {failed} of {len(checks)} checks failed on {target}, expected none")
        note("hint: do not use this bundle on this machine; try another target, or another version of the engine")
        raise typer.Exit(3)
    note(f"{bundle}: digests hold, {len(checks)} checks passed on {target}")


def checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            check["name"],
            "not finite" if check["value"] is None else f"{check['value']:.2e}",
            f"{check['limit']:.0e}",
            "ok" if check["passed"] else "FAILED",
        ]
        for check in checks
    ]
    return table(["check", "measured", "limit", ""], rows)
