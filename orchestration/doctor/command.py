"""The command `leash doctor`: does this machine, or every node of a cluster, have what Leash needs?"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence

from orchestration.command import AddCommand
from orchestration.doctor.facts import Facts, collect
from orchestration.doctor.findings import Finding, findings

_MARK = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


def add_doctor_command(add_command: AddCommand) -> None:
    """To the `leash` command."""
    doctor = add_command("doctor", _doctor, "check that this machine, or a cluster, has what Leash needs")
    doctor.add_argument(
        "--address",
        help="address of a running Ray cluster, to check all of its nodes; auto: the one on this machine",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON, for scripts")


def finding_lines(found: Sequence[Finding]) -> Iterator[str]:
    """Findings for people, node by node, each with its fix below."""
    for node in dict.fromkeys(finding.node for finding in found):
        yield node
        for finding in found:
            if finding.node == node:
                yield f"  {_MARK[finding.level]} {finding.what}"
                if finding.fix:
                    yield f"            {finding.fix}"
    counts = {level: sum(finding.level == level for finding in found) for level in ("problem", "warning")}
    yield f"{counts['problem']} problems, {counts['warning']} warnings"


def _doctor(args: argparse.Namespace) -> int:
    nodes, found = _facts(args.address)
    found = found + findings(nodes)
    if args.json:
        report = {
            "nodes": [dataclasses.asdict(facts) for facts in nodes],
            "findings": [dataclasses.asdict(finding) for finding in found],
        }
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(finding_lines(found)))
    return 1 if any(finding.level == "problem" for finding in found) else 0


def _facts(address: str | None) -> tuple[list[Facts], list[Finding]]:
    if address is None:
        return [collect()], []
    # Imports Ray, seconds that whoever asks about one machine must not wait.
    from orchestration.doctor.cluster_facts import collect_from_cluster

    return collect_from_cluster(address)
