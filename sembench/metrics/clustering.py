"""How well the embeddings of a set of tiles fall into clusters, and whether those mean anything.

The three inner scores are those of the paper's Table 1 (arXiv 2604.05960); NMI and ARI compare the clusters with the
image groups that the tiles come from, which the paper does not report.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from sembench.errors import InputError
from sembench.metrics.table import Better, Evaluation

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLUSTERS = 10
INITS = 10
SEEDS = 10


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of a set: vectors float32 (n, d) of length 1, and the group of each.

    Raises InputError where shapes do not fit, a vector is not finite or zero, or there are too few for the clusters.
    """

    vectors: "NDArray[np.float32]"
    groups: Sequence[str]
    _kept: "dict[str, NDArray[np.float64]]" = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if len(shape) != 2 or shape[0] != len(self.groups):
            raise InputError(f"embeddings of shape {shape} do not fit {len(self.groups)} tiles: give (tiles, features)")
        if not np.isfinite(self.vectors).all():
            raise InputError(f"{int((~np.isfinite(self.vectors)).any(axis=1).sum())} embeddings are not finite")
        if shape[0] <= CLUSTERS:
            raise InputError(f"{shape[0]} tiles are too few for {CLUSTERS} clusters")
        distinct = len(np.unique(self.vectors, axis=0))
        if distinct < CLUSTERS:
            raise InputError(f"{distinct} distinct embeddings of {shape[0]} tiles are too few for {CLUSTERS} clusters")

    def scores(self) -> "dict[str, NDArray[np.float64]]":
        """Every score for each of the seeds of KMeans, (SEEDS,)."""
        if not self._kept:
            self._kept.update(_scores(normalised(self.vectors), self.groups))
        return self._kept


def normalised(vectors: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """Vectors (n, d) scaled to length 1; InputError where one has no length."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise InputError(f"{int((lengths == 0).sum())} embeddings are zero: they have no direction")
    return np.asarray(vectors / lengths)


def clusters(vectors: "NDArray[np.float64]", seed: int) -> "NDArray[np.int_]":
    """The cluster 0..9 of each vector of length 1, (n,), by KMeans from one seed, whatever the number of threads."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return np.asarray(KMeans(CLUSTERS, n_init=INITS, random_state=seed).fit_predict(vectors))


def projected(vectors: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Vectors of length 1 laid out in a plane, (n, 2), by t-SNE of cosine distances: near stays near, far means little.

    Source: van der Maaten and Hinton 2008.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    with threadpool_limits(1):
        return np.asarray(
            TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=0).fit_transform(vectors)
        )


def _scores(vectors: "NDArray[np.float64]", groups: Sequence[str]) -> "dict[str, NDArray[np.float64]]":
    from sklearn import metrics

    distances = np.clip(1 - vectors @ vectors.T, 0, None)
    np.fill_diagonal(distances, 0)
    runs: dict[str, list[float]] = {name: [] for name in TITLES}
    for seed in range(SEEDS):
        labels = clusters(vectors, seed)
        runs["silhouette"].append(metrics.silhouette_score(distances, labels, metric="precomputed"))
        runs["davies_bouldin"].append(metrics.davies_bouldin_score(vectors, labels))
        runs["calinski_harabasz"].append(metrics.calinski_harabasz_score(vectors, labels))
        runs["nmi"].append(metrics.normalized_mutual_info_score(groups, labels))
        runs["ari"].append(metrics.adjusted_rand_score(groups, labels))
    return {name: np.array(values) for name, values in runs.items()}


@dataclass(frozen=True)
class SetMetricSpec:
    """A metric over a whole set of embeddings; fields as those of MetricSpec."""

    name: str
    title: str
    unit: str
    better: Better
    function: Callable[[Embedded], float]
    version: int
    tolerance: float
    needs: Callable[[], list[str]] = list


def evaluate_set(metrics: Iterable[SetMetricSpec], embedded: Embedded) -> Evaluation:
    """Score the embeddings of one set by each metric."""
    return Evaluation({metric.name: float(metric.function(embedded)) for metric in metrics}, {})


TITLES: dict[str, tuple[str, Better]] = {
    "silhouette": ("Silhouette (Rousseeuw, 1987), cosine distance", "higher"),
    "davies_bouldin": ("Davies-Bouldin index (1979)", "lower"),
    "calinski_harabasz": ("Calinski-Harabasz index (1974)", "higher"),
    "nmi": ("Normalised mutual information of clusters and image groups", "higher"),
    "ari": ("Adjusted Rand index of clusters and image groups (Hubert and Arabie, 1985)", "higher"),
}


def _mean(name: str) -> SetMetricSpec:
    title, better = TITLES[name]
    return SetMetricSpec(
        name, title, "", better, lambda embedded: float(embedded.scores()[name].mean()), version=1, tolerance=1e-3
    )


def _spread(name: str) -> SetMetricSpec:
    title = f"{TITLES[name][0]}: standard deviation over {SEEDS} seeds of KMeans"
    return SetMetricSpec(
        f"{name}_spread", title, "", "none", lambda embedded: float(embedded.scores()[name].std(ddof=1)), version=1,
        tolerance=1e-3,
    )  # fmt: skip


SPECS = SimpleNamespace(**{spec.name: spec for name in TITLES for spec in (_mean(name), _spread(name))})
"""Every metric of this family by name."""
