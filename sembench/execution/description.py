"""What run.json tells of a run: its protocol, data, rows, code, environments and commands."""

import time
from collections.abc import Collection
from typing import Any

from sembench.execution import fits
from sembench.execution.folder import RUN_SCHEMA, described_rows, read_description, write_description
from sembench.execution.plan import Row
from sembench.execution.provenance import code_description, environment, environment_digest, git_state
from sembench.execution.request import RunPlan, RunRequest
from sembench.registry import find_method


def describe(
    plan: RunPlan,
    request: RunRequest,
    kept: Collection[str] = (),
    wanted: Collection[str] = (),
    states: dict[str, fits.FittedState] | None = None,
) -> None:
    """Write run.json; kept: rows of which records stay, wanted: rows of which this command makes some."""
    before = read_description(plan.folder, plan.digest)
    rows = described_rows(before)
    rows.update(
        {
            row.row_id: {
                **{"row": row.row_id, "restorer": row.name, "kind": row.kind, "settings": row.settings},
                **_method_description(
                    row, rows.get(row.row_id, {}), stands=row.row_id in kept, adds=row.row_id in wanted
                ),
                **_fit_description(plan, row, (states or {}).get(row.row_id), rows.get(row.row_id, {})),
            }
            for row in plan.rows
        }
    )
    here = environment()
    description = {
        "schema": RUN_SCHEMA,
        "digest": plan.digest,
        "protocol": plan.protocol.model_dump(mode="json"),
        "protocol_digest": plan.protocol.digest,
        "data": plan.cases.data,
        "data_digest": plan.cases.digest,
        "metrics": list(plan.metrics),
        "rows": [rows[name] for name in sorted(rows)],
        **_asked_of(plan, request, before),
        "notices": list(plan.notices),
        "environment": here,
        "environments": {**before.get("environments", {}), environment_digest(here): here},
        "git": git_state(),
        "command": list(request.command),
        "started": before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if plan.shard:
        description["shard"] = str(plan.shard)
    if "shards" in before:
        description["shards"] = before["shards"]
    write_description(plan.folder, description)


def _asked_of(plan: RunPlan, request: RunRequest, before: dict[str, Any]) -> dict[str, Any]:
    """The cases of all commands of a folder and their limit, none where one had none; a set is one case, the last."""
    cases = [spec.case_id for spec in plan.cases.specs]
    known = before.get("cases")
    if not isinstance(known, list) or plan.protocol.scope == "set":
        return {"limit": request.limit, "cases": cases}
    limits = [limit for limit in (before.get("limit"), request.limit) if isinstance(limit, int)]
    return {"limit": max(limits) if len(limits) == 2 else None, "cases": list(dict.fromkeys([*known, *cases]))}


def _method_description(row: Row, known: dict[str, Any], *, stands: bool, adds: bool) -> dict[str, Any]:
    """What run.json says of a row's method: what its id follows from, the code of its records, and whose work it is.

    known, stands, adds: as for `code_description`.
    """
    method = find_method(row.target)
    cls = method.cls
    return {
        **code_description(method, known, stands=stands, adds=adds),
        "version": row.version,
        "source_sha256": row.source_sha256,
        "weights_sha256": row.weights_sha256,
        "trained_on": list(row.trained_on),
        "variant": row.variant,
        "summary": cls.summary(),
        "licence": cls.licence,
        "citation": cls.citation,
    }


def _fit_description(plan: RunPlan, row: Row, state: fits.FittedState | None, before: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a row's fit: its identity, and once there is a state that and how it was made."""
    if row.row_id not in plan.fit_plans:
        return {}
    if state is None:
        return {"fit": before.get("fit", {"identity": plan.fit_plans[row.row_id].identity})}
    told = {"state_sha256": state.sha256, "source": state.source, "report": state.report}
    return {"fit": {"identity": plan.fit_plans[row.row_id].identity, **told}}
