"""`bench doctor`: whether this machine has what the suite needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.doctor import Finding


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what can be repaired (torchaudio with a CPU build of torch).")
    ] = False,
) -> None:
    """Check libraries, compiler, GPU and disk of this machine, and say how to get what is missing."""
    from bench import doctor as checks

    for line in checks.fix() if fix else []:
        print(line)
    findings = checks.diagnose()
    for finding in findings:
        _print_finding(finding)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:14s} {finding.detail}")
    if not finding.ok:
        print(f"     {'':14s} -> {finding.remedy}")
