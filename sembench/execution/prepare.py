"""From what the user asked for to a plan of the run; every refusal of a run comes from here."""

from dataclasses import replace
from pathlib import Path

from sembench.cases import plan_cases
from sembench.datasets import cache
from sembench.errors import InputError, UnavailableError
from sembench.execution.kept import told_of_other_code
from sembench.execution.plan import available_metrics, default_folder, only_fitted, plan_fits, plan_rows
from sembench.execution.request import RunPlan, RunRequest
from sembench.metrics import perceptual
from sembench.protocol import load
from sembench.restorer import Budget


def prepare(request: RunRequest) -> RunPlan:
    """Resolve names, settings, data, weights and the folder; every refusal of a run comes from here."""
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit {request.limit}: give 1 at least")
    if request.workers < 1:
        raise InputError(f"--workers {request.workers}: give 1 at least")
    check_device(request.device)
    protocol = load(request.protocol)
    budget = Budget.of(request.budget or protocol.budget)
    rows, row_notices = plan_rows(
        request.restorers, request.settings, protocol, skip_unavailable=request.skip_unavailable
    )
    cases = plan_cases(
        protocol,
        request.data,
        limit=request.limit,
        require_real=request.require_real,
        crop_bottom=request.crop_bottom,
    )
    rows, planned_fits = plan_fits(rows, protocol, cases.data, budget, pairs=request.pairs, device=request.device)
    if request.no_fit:
        rows, fit_notices = only_fitted(rows, planned_fits)
        row_notices += fit_notices
        planned_fits = {row.row_id: planned_fits[row.row_id] for row in rows if row.row_id in planned_fits}
    metrics, metric_notices = available_metrics(protocol)
    if metric_notices:
        perceptual.use_weights(find_weights()[0])
        metrics, metric_notices = available_metrics(protocol)
    if not metrics:
        raise UnavailableError(f"no metric of protocol {protocol.name!r} is available: {metric_notices[0]}")
    folder = request.out or default_folder(protocol, cases)
    if request.shard:
        cases, folder = request.shard.part(cases), request.shard.folder(folder)
    plan = RunPlan(
        protocol,
        cases,
        tuple(rows),
        tuple(metrics),
        perceptual.weights_in_use(),
        folder,
        (*cases.notices, *row_notices, *metric_notices),
        planned_fits,
        request.shard,
    )
    return plan if request.fresh else replace(plan, notices=(*plan.notices, *told_of_other_code(plan, request)))


def check_device(device: str) -> None:
    """Refuse a device that torch has not here; `cpu` is told without torch."""
    if device == "cpu":
        return
    import torch

    if not (device == "cuda" or device.startswith("cuda:")):
        raise InputError(f"--device {device}: give cpu, cuda or cuda:N")
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise UnavailableError(f"--device {device}: torch finds {torch.cuda.device_count()} such devices: give cpu")


def find_weights(*, download: bool = True) -> tuple[dict[str, Path], list[str]]:
    """Where the weights of the metrics lie, and why some cannot be had."""
    found, notices = {}, []
    for name in (perceptual.ALEXNET, perceptual.NIQE_PARAMETERS):
        try:
            path = cache.locate_weight(name, download=download)
        except UnavailableError as error:
            notices.append(str(error))
            continue
        if path is not None:
            found[name] = path
    return found, notices
