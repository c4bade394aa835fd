"""Which of a set's encoders tells the groups apart better: clusters and neighbours, paired, with intervals over groups.

    sembench run --protocol clustering --restorer semfm,vit_mae_sem --out RUN
    sembench run --protocol clustering --restorer semfm --set encoder=random --out RUN
    python benchmarks/encoders.py RUN [--against semfm-ebd1b0c0] [--neighbours 5]

nmi: mutual information of KMeans' clusters with the groups, as the protocol has it; its interval leaves out one group
after the other and clusters anew. retrieval: of each tile the share of its nearest other tiles (cosine) that are of its
own group; a mean over tiles, its interval bootstrap-t over groups; groups of a single tile have no other. Prints a
Markdown table: each row of the run, then differences from the row named by --against, or from the first.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sembench.cases import plan_cases
from sembench.cases.tiles import TileSetSpec
from sembench.comparison import row_labels
from sembench.errors import InputError, SembenchError
from sembench.execution.recorded import RecordedRun, read_run
from sembench.metrics.clustering import SEEDS, clusters, normalised
from sembench.protocol import Protocol
from sembench.statistics import Interval, jackknife_interval, mean_interval

Vectors = NDArray[np.float64]


def nmi(vectors: Vectors, groups: NDArray[np.str_]) -> float:
    """Mean over the seeds of KMeans."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(np.mean([normalized_mutual_info_score(groups, clusters(vectors, seed)) for seed in range(SEEDS)]))


def retrieval(vectors: Vectors, groups: NDArray[np.str_], neighbours: int) -> NDArray[np.float64]:
    """Share of each tile's nearest other tiles that are of its group, (n,)."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :neighbours]
    return np.asarray((groups[nearest] == groups[:, None]).mean(1), dtype=np.float64)


def embeddings(run: RecordedRun) -> tuple[dict[str, Vectors], NDArray[np.str_]]:
    """The vectors of each row, in the order of the run, and the group of each tile."""
    protocol = Protocol.model_validate(run.description["protocol"])
    if protocol.scope != "set":
        raise InputError(f"{run.folder}: is a run of {protocol.name}: give one of clustering")
    found = {
        record["row"]: normalised(np.load(run.folder / record["embeddings"], allow_pickle=False))
        for record in run.records
        if record["status"] == "ok"
    }
    (spec,) = plan_cases(protocol, run.description["data"]).specs
    if not isinstance(spec, TileSetSpec) or any(len(vectors) != len(spec.groups) for vectors in found.values()):
        raise InputError(f"{run.folder}: its embeddings are not those of all tiles: run it again without --limit")
    return found, np.array(spec.groups)


def cell(interval: Interval, sign: str = "") -> str:
    """Value and limits to three digits."""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:{sign}.3f}"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def table(run: RecordedRun, against: str | None, neighbours: int) -> str:
    """The table as Markdown; InputError for a row that the run does not have."""
    found, groups = embeddings(run)
    labels = row_labels(run.rows)
    first = against or next(iter(found))
    if first not in found:
        raise InputError(f"{run.folder}: has no row {first!r}: give one of {', '.join(found)}")
    shared = np.isin(groups, [group for group in set(groups) if (groups == group).sum() > 1])
    lines = [
        f"{len(groups)} tiles, {len(set(groups))} groups, {run.description['data']}; limits of 95 %.",
        "",
        f"| encoder | nmi | retrieval of {neighbours} | nmi, less {labels[first]} | retrieval, less {labels[first]} |",
        "|---|---|---|---|---|",
    ]
    known: dict[tuple[str, bytes], float] = {}

    def nmi_of(row: str, kept: NDArray[np.bool_]) -> float:
        about = row, kept.tobytes()
        if about not in known:
            known[about] = nmi(found[row][kept], groups[kept])
        return known[about]

    scores = {row: retrieval(vectors, groups, neighbours)[shared] for row, vectors in found.items()}
    for row in found:
        own = jackknife_interval(partial(nmi_of, row), groups)
        cells = [labels[row], cell(own), cell(mean_interval(scores[row], list(groups[shared])))]
        if row != first:
            apart = jackknife_interval(lambda kept, one=row: nmi_of(one, kept) - nmi_of(first, kept), groups)
            cells += [cell(apart, "+"), cell(mean_interval(scores[row] - scores[first], list(groups[shared])), "+")]
        lines.append("| " + " | ".join([*cells, *[""] * (5 - len(cells))]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", help="the row to take differences from")
    parser.add_argument("--neighbours", type=int, default=5)
    given = parser.parse_args()
    try:
        print(table(read_run(given.run), given.against, given.neighbours))
    except SembenchError as error:
        sys.exit(f"encoders: {error}")


if __name__ == "__main__":
    main()
