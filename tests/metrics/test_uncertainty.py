import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench.errors import UserError
from peftbench.metrics._cache import prune
from peftbench.metrics._uncertainty import cluster_codes, mean_uncertainty
from peftbench.metrics.base import MetricSettings, load_metric, metric_names, read_settings

PLAIN = MetricSettings()


def test_rows_without_clusters_have_the_textbook_error() -> None:
    scores = [0.0, 100.0, 100.0, 30.0, 60.0]
    found = mean_uncertainty(scores, None, PLAIN)
    assert found.stderr == pytest.approx(np.std(scores, ddof=1) / np.sqrt(5))


def test_clusters_of_equal_rows_count_once() -> None:
    scores = np.array([0.0, 100.0, 100.0, 30.0, 60.0])
    alone = mean_uncertainty(scores, None, PLAIN)
    codes = cluster_codes([f"image{n}" for n in range(5) for _ in range(4)])
    repeated = mean_uncertainty(np.repeat(scores, 4), codes, PLAIN)
    assert repeated.stderr == pytest.approx(alone.stderr)
    naive = mean_uncertainty(np.repeat(scores, 4), None, PLAIN)
    assert naive.stderr < 0.6 * repeated.stderr


def test_clustered_error_by_definition() -> None:
    rng = np.random.default_rng(1)
    scores, codes = rng.uniform(0, 100, 50), rng.integers(0, 12, 50)
    mean = scores.mean()
    total = sum(((scores[codes == g] - mean).sum()) ** 2 for g in range(12))
    assert mean_uncertainty(scores, codes, PLAIN).stderr == pytest.approx(np.sqrt(12 / 11 * total) / 50)


def test_both_bootstraps_are_the_same_bootstrap() -> None:
    rng = np.random.default_rng(2)
    few = rng.choice([0.0, 30.0, 60.0, 90.0, 100.0], 4000)
    # A spread too small to matter makes the values distinct, so that rows are drawn one by one.
    many = few + rng.uniform(0, 1e-6, 4000)
    one, other = mean_uncertainty(few, None, PLAIN), mean_uncertainty(many, None, PLAIN)
    assert one.stderr == pytest.approx(other.stderr, rel=1e-6)
    assert np.abs(np.array(one.interval) - np.array(other.interval)).max() < 0.2
    width = one.interval[1] - one.interval[0]
    assert width == pytest.approx(2 * 1.96 * one.stderr, rel=0.1)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = mean_uncertainty(rng.uniform(0, 100, 40), None, MetricSettings(replicates=300))
        hits += found.interval[0] <= 50 <= found.interval[1]
    assert 0.88 < hits / 200 < 0.99


def test_the_seed_decides() -> None:
    scores = list(np.random.default_rng(4).uniform(0, 100, 30))
    first, second = mean_uncertainty(scores, None, PLAIN), mean_uncertainty(scores, None, PLAIN)
    assert first == second
    assert mean_uncertainty(scores, None, MetricSettings(seed=1)).interval != first.interval


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["", "a", "b", "c"])), min_size=1, max_size=30),
    st.integers(0, 60),
)
def test_always_finite_and_around_the_mean(rows: list[tuple[float, str]], replicates: int) -> None:
    scores = [value for value, _ in rows]
    codes = cluster_codes([key for _, key in rows])
    found = mean_uncertainty(scores, codes, MetricSettings(replicates=replicates))
    assert np.isfinite([found.stderr, *found.interval]).all()
    assert found.stderr >= 0
    assert found.interval[0] <= found.interval[1]


def test_rows_without_an_image_are_clusters_of_their_own() -> None:
    codes = cluster_codes(["a", "", "a", ""])
    assert codes is not None
    assert len(set(codes.tolist())) == 3
    assert cluster_codes(["a", "", "b", ""]) is None


def test_settings_and_names() -> None:
    names = metric_names()
    answers = {"vqa_score", "scienceqa", "iconqa", "exact_match", "cider", "chair", "pope", "mmhal"}
    assert answers | {"answer_loss"} == set(names)
    for name in names:
        metric = load_metric(name)
        assert issubclass(metric.Settings, MetricSettings)
        with pytest.raises(UserError, match="list is empty" if name in answers else "reads the losses"):
            metric.score([], [], {})
    with pytest.raises(UserError, match="did you mean 'cider'"):
        load_metric("cidr")
    with pytest.raises(UserError, match="confidence must lie"):
        read_settings(MetricSettings, {"confidence": 1.0}, "x")


def test_only_the_newest_compiled_references_are_kept(tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / str(number)
        place.mkdir() if number % 2 else place.touch()
        os.utime(place, (number, number))
    prune(tmp_path, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5"]
    prune(tmp_path / "nothing")
