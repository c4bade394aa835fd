"""Clustering scores against slow transcriptions and cases whose answer is known."""

import numpy as np
import pytest

from sembench.errors import InputError
from sembench.metrics.clustering import SPECS, Embedded, evaluate_set, normalised

SPEC_LIST = tuple(vars(SPECS).values())


def blobs(spread: float, per_group: int = 20) -> Embedded:
    """Ten groups about ten orthogonal directions."""
    rng = np.random.default_rng(4)
    vectors = np.repeat(np.eye(10, 16), per_group, axis=0) + spread * rng.normal(size=(10 * per_group, 16))
    return Embedded(vectors.astype(np.float32), [f"g{i // per_group}" for i in range(10 * per_group)])


def test_groups_far_apart_are_found_exactly() -> None:
    values = evaluate_set(SPEC_LIST, blobs(0.02)).values
    assert values["nmi"] == pytest.approx(1)
    assert values["ari"] == pytest.approx(1)
    assert values["silhouette"] == pytest.approx(1, abs=0.01)
    assert values["davies_bouldin"] == pytest.approx(0, abs=0.15)
    assert values["silhouette_spread"] == pytest.approx(0, abs=1e-9)


def test_random_embeddings_know_nothing_of_the_groups() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i % 10}" for i in range(300)]
    values = evaluate_set(SPEC_LIST, Embedded(rng.normal(size=(300, 16)).astype(np.float32), groups)).values
    assert values["ari"] == pytest.approx(0, abs=0.02)
    assert (values["silhouette"] or 1) < 0.2


def test_blurred_groups_score_worse_in_every_metric() -> None:
    tight, loose = (evaluate_set(SPEC_LIST, blobs(spread)).values for spread in (0.05, 0.3))
    for spec in SPEC_LIST:
        if spec.better == "higher":
            assert (tight[spec.name] or 0) > (loose[spec.name] or 0), spec.name
        if spec.better == "lower":
            assert (tight[spec.name] or 0) < (loose[spec.name] or 0), spec.name


def test_silhouette_is_the_mean_over_points_of_the_cosine_silhouette() -> None:
    """Rousseeuw's definition point by point, for labels that KMeans finds without doubt."""
    embedded = blobs(0.1, per_group=6)
    unit = normalised(embedded.vectors)
    labels = np.arange(60) // 6
    values = []
    for i in range(60):
        distance = 1 - unit @ unit[i]
        same = (labels == labels[i]) & (np.arange(60) != i)
        inside = distance[same].mean()
        outside = min(distance[labels == other].mean() for other in range(10) if other != labels[i])
        values.append((outside - inside) / max(inside, outside))
    assert evaluate_set([SPECS.silhouette], embedded).values["silhouette"] == pytest.approx(np.mean(values), abs=1e-9)


def test_scores_do_not_depend_on_the_vectors_lengths() -> None:
    one = blobs(0.2)
    lengths = np.random.default_rng(1).uniform(0.5, 3, (200, 1)).astype(np.float32)
    other = Embedded(one.vectors * lengths, one.groups)
    assert evaluate_set(SPEC_LIST, one).values == pytest.approx(evaluate_set(SPEC_LIST, other).values, rel=1e-4)


@pytest.mark.parametrize(
    ("vectors", "groups", "words"),
    [
        (np.ones((30, 4)), ["a"] * 29, "do not fit 29 tiles"),
        (np.full((30, 4), np.nan), ["a"] * 30, "30 embeddings are not finite"),
        (np.ones((10, 4)), ["a"] * 10, "too few"),
    ],
)
def test_what_cannot_be_scored_is_refused(vectors: np.ndarray, groups: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Embedded(vectors.astype(np.float32), groups)


def test_a_zero_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="3 embeddings are zero"):
        normalised(np.r_[np.zeros((3, 4)), np.ones((3, 4))])
