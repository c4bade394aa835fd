"""Compare the pinned versions with the published advisories, in one question to OSV; one line where none is answered.

    python .ci/advisories.py [CONSTRAINTS]

Ends with 0 where nothing is known or nobody answers, 1 where a pinned version has an advisory, a line each. What is
asked: names and versions, no more. Source of the answers: https://osv.dev, which has PyPI's own advisory database.
"""

import http.client
import json
import re
import sys
import urllib.request
from pathlib import Path

ADDRESS = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 10.0

ACCEPTED: dict[str, str] = {}
"""Advisories that do not concern this project: id -> why."""


def pinned(constraints: str) -> list[tuple[str, str]]:
    """Name and version of each line `name==version`; comments and markers are left out."""
    return re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;#]+)", constraints, re.MULTILINE)


def ask(packages: list[tuple[str, str]], address: str, timeout_s: float) -> list[list[str]]:
    """Advisory ids of each package, in order; OSError or ValueError where there is no such answer."""
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    request = urllib.request.Request(
        address, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        results = json.loads(answer.read(1 << 24))["results"]
    if len(results) != len(packages):
        raise ValueError(f"{len(results)} answers to {len(packages)} questions")
    ids = [[str(told["id"]) for told in result.get("vulns", [])] for result in results]
    if not all(re.fullmatch(r"[A-Za-z0-9._:-]{1,80}", told) for part in ids for told in part):
        raise ValueError("an id that is none")
    return ids


def main(constraints: Path, address: str = ADDRESS, timeout_s: float = TIMEOUT_S) -> int:
    """Print what is known of the pinned versions; the exit status."""
    packages = pinned(constraints.read_text(encoding="utf-8"))
    try:
        answers = ask(packages, address, timeout_s)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120] or type(error).__name__
        print(f"advisories: skipped, no answer ({reason})")
        return 0
    found = [
        f"{name} {version}: {told}, see https://osv.dev/{told}; pin a mended version or accept it with a reason"
        for (name, version), ids in zip(packages, answers, strict=True)
        for told in ids
        if told not in ACCEPTED
    ]
    print("\n".join([*found, f"advisories: {len(packages)} pinned versions compared, {len(found)} found"]))
    return 1 if found else 0


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    named = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "constraints.txt"
    sys.exit(main(named))
