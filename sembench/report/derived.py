"""Every file of a run folder that follows from its records, always remade from them."""

from sembench import results
from sembench.execution.records import Record
from sembench.execution.request import RunPlan
from sembench.execution.run import flat_records
from sembench.execution.worker import FLAT_METRICS
from sembench.report import page, pictures
from sembench.results import SummaryRow


def write_derived(plan: RunPlan, records: list[Record]) -> list[SummaryRow]:
    """Remake tables, figures and report.html of the run folder; returns the summary in table order."""
    summary, strata, primary = results.write_tables(plan.folder, plan.protocol, plan.rows, plan.metrics, records)
    flat = flat_records(plan)
    if flat:
        results.write_cases(plan.folder / "flat.csv", plan.rows, flat, FLAT_METRICS)
    shown = pictures.draw(plan, summary, records, primary.name)
    page.write_report(plan, records, results.with_flat_fields(summary, flat), strata, primary, shown)
    return summary
