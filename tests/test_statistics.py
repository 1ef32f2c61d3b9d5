"""Statistics: against reference code and sums by hand, coverage on made-up data, every rare case."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from fake_store import FakeStore, coin, example
from peftbench.analysis.statistics.blocks import Normal, block_mean, page_trend, share
from peftbench.analysis.statistics.diagram import groups, save_ranks
from peftbench.analysis.statistics.items import Items, over_seeds, read_items
from peftbench.analysis.statistics.paired import Bootstrap, cluster_sums, contrast, paired_bootstrap
from peftbench.analysis.statistics.power import blocks_needed, parts_of, plan, plan_comparison
from peftbench.analysis.statistics.ranks import Ranking, friedman, holm, rank_methods, signed_rank
from peftbench.analysis.statistics.result import NotComputable
from peftbench.analysis.statistics.seeds import SpreadTest, spread_contrast, variance_components
from peftbench.analysis.statistics.ties import Ties, tied_with_best
from peftbench.data.example import Example

TABLES = Path(__file__).parents[1] / "paper/tables"


def items(scores: object, clusters: list[int] | None = None) -> Items:
    """Scores [items] or [seeds, items] as one configuration."""
    values = np.atleast_2d(np.asarray(scores, dtype=float))
    codes = None if clusters is None else np.asarray(clusters)
    return Items(ids=[f"{i:05d}" for i in range(values.shape[1])], scores=values, clusters=codes)


def done(found: Bootstrap | NotComputable) -> Bootstrap:
    assert isinstance(found, Bootstrap), str(found)
    return found


# --- paired bootstrap -------------------------------------------------------------------------------------------------


def test_the_standard_error_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), rng.normal(size=300)
    found = done(paired_bootstrap(items(a), items(b)))
    assert found.effect == pytest.approx((a - b).mean())
    assert found.stderr == pytest.approx(stats.sem(a - b))
    assert found.draws.std() == pytest.approx(stats.sem(a - b), rel=0.03)
    assert found.seed_stderr is None  # one seed: unknown, not zero
    assert found.p() == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.03)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_are_those_of_scipy(method: str) -> None:
    rng = np.random.default_rng(3)
    d = rng.exponential(size=60) - 0.8
    reference = stats.bootstrap((d,), np.mean, method=method, n_resamples=20_000, rng=rng).confidence_interval
    own = done(
        paired_bootstrap(items(d), items(np.zeros(60)), replicates=20_000, method=method.lower())  # type: ignore[arg-type]
    )
    assert own.interval() == pytest.approx(tuple(reference), abs=0.015)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_p_is_the_level_at_which_the_interval_reaches_the_threshold(method: str) -> None:
    d = np.random.default_rng(5).exponential(size=80) - 0.85
    found = done(paired_bootstrap(items(d), items(np.zeros(80)), method=method))  # type: ignore[arg-type]
    p = found.p()
    low, high = found.interval(1 - p)
    assert min(abs(low), abs(high)) < 0.004
    assert found.p(found.effect + 10) < 0.001


def test_coverage_is_nominal_for_answers_that_are_right_or_wrong() -> None:
    rng = np.random.default_rng(7)
    n, trials, inside = 250, 300, 0
    for _ in range(trials):
        a = rng.random(n) < 0.7
        b = np.where(rng.random(n) < 0.6, a, rng.random(n) < 0.6)  # expected difference 0.4 * 0.1
        low, high = done(paired_bootstrap(items(a), items(b), replicates=600)).interval()
        inside += low <= 0.04 <= high
    assert 0.91 <= inside / trials <= 0.985


def test_coverage_with_clusters_needs_the_clusters() -> None:
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(60), 5)
    trials, clustered, naive = 200, 0, 0
    for _ in range(trials):
        d = np.repeat(rng.normal(size=60), 5) + 0.3 * rng.normal(size=300)
        zero = np.zeros(300)
        with_images = done(
            paired_bootstrap(items(d, list(clusters)), items(zero, list(clusters)), replicates=500)
        )
        without = done(paired_bootstrap(items(d), items(zero), replicates=500))
        clustered += with_images.interval()[0] <= 0 <= with_images.interval()[1]
        naive += without.interval()[0] <= 0 <= without.interval()[1]
    assert 0.9 <= clustered / trials <= 0.99
    assert naive / trials < 0.75


def test_coverage_with_seeds_holds_the_seed_variance() -> None:
    rng = np.random.default_rng(9)
    trials, inside, blind = 250, 0, 0
    for _ in range(trials):
        item = rng.normal(size=100)
        a, b = (item + rng.normal(0, 0.3, (3, 1)) + rng.normal(0, 0.5, (3, 100)) for _ in range(2))
        found = done(paired_bootstrap(items(a), items(b), replicates=500))
        inside += found.interval()[0] <= 0 <= found.interval()[1]
        one = done(paired_bootstrap(items(a[0]), items(b[0]), replicates=500))
        blind += one.interval()[0] <= 0 <= one.interval()[1]
    assert 0.91 <= inside / trials <= 1.0
    assert blind / trials < 0.6  # what one seed cannot know


def test_few_distinct_differences_are_drawn_as_counts_with_the_same_law() -> None:
    rng = np.random.default_rng(1)
    d = rng.choice([-100.0, 0.0, 100.0], p=[0.1, 0.7, 0.2], size=500)
    counted = done(paired_bootstrap(items(d), items(np.zeros(500))))
    picked = done(paired_bootstrap(items(d + rng.normal(0, 1e-6, 500)), items(np.zeros(500))))
    assert counted.interval() == pytest.approx(picked.interval(), abs=0.5)


def test_equal_runs_differ_by_nothing() -> None:
    run = items(coin(0.5, 50, 1))
    found = done(paired_bootstrap(run, run))
    assert (found.effect, found.stderr, found.p(), found.interval()) == (0.0, 0.0, 1.0, (0.0, 0.0))
    assert done(paired_bootstrap(run, run, method="bca")).interval() == (0.0, 0.0)


def test_a_constant_difference_of_few_items_is_no_proof() -> None:
    three = done(paired_bootstrap(items([1, 2, 3]), items([0, 1, 2])))
    assert three.p() == 0.25  # 2 / 2**3, whatever the bootstrap says
    assert three.interval() == (1.0, 1.0)


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        (items([1.0]), items([0.0]), "one test item"),
        (items([1.0, 2.0], [0, 0]), items([0.0, 2.0], [0, 0]), "one test item (or image) only"),
        (items([1.0, 2.0, 3.0]), items([1.0, 2.0]), "different test items"),
    ],
)
def test_what_cannot_be_compared_says_why(left: Items, right: Items, why: str) -> None:
    found = paired_bootstrap(left, right)
    assert (
        isinstance(found, NotComputable) and why in str(found) and str(found).startswith("not computable: ")
    )


def test_items_without_a_score_are_left_out_in_pairs() -> None:
    a, b = items([1.0, math.nan, 3.0, 5.0]), items([0.0, 1.0, math.nan, 2.0])
    found = done(paired_bootstrap(a, b))
    assert found.items == 2 and found.effect == pytest.approx(2.0)
    sums, counts = cluster_sums(np.array([1.0, math.nan, 2.0]), np.array([0, 1, 0]))
    assert (sums.tolist(), counts.tolist()) == ([3.0], [2.0])


def test_the_mean_over_test_sets_adds_errors_in_squares() -> None:
    rng = np.random.default_rng(2)
    one, two = (items(rng.normal(size=n)) for n in (100, 400))
    zeros = [items(np.zeros(n)) for n in (100, 400)]
    found = done(contrast([[(1.0, one), (-1.0, zeros[0])], [(1.0, two), (-1.0, zeros[1])]]))
    assert found.effect == pytest.approx((one.value + two.value) / 2)
    assert found.stderr == pytest.approx(math.hypot(stats.sem(one.scores[0]), stats.sem(two.scores[0])) / 2)
    assert isinstance(contrast([]), NotComputable)


# --- items from results -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    made.dataset("alpha", _pairs(made))
    return made


def _pairs(store: FakeStore) -> list[Example]:  # two questions about each picture
    one = [example(store, "alpha", i) for i in range(10)]
    return [*one, *(example(store, "alpha", i + 10, image=one[i].image) for i in range(10))]


def test_items_come_from_the_scores_with_their_images_as_clusters(store: FakeStore) -> None:
    scores = coin(0.5, 20, 3)
    cell = store.run("alpha", "lora", answers=["x"] * 20, scores=scores)
    found = read_items(store.root / cell.scores, store.root, value=sum(scores) / 20)
    assert isinstance(found, Items)
    assert found.value == pytest.approx(sum(scores) / 20)
    assert found.clusters is not None and len(set(found.clusters.tolist())) == 10
    assert found.ids == sorted(found.ids)


def test_items_that_are_not_what_the_score_says_are_refused(store: FakeStore) -> None:
    cell = store.run("alpha", "lora", answers=["x"] * 20, scores=[1.0] * 20)
    folder = store.root / cell.scores
    assert "not the mean" in str(read_items(folder, store.root, value=7.0))
    assert "cannot be read" in str(read_items(folder, store.root, column="nothing"))
    (folder / "examples.parquet").unlink()
    assert "cannot be read" in str(read_items(folder, store.root))
    gone = store.run("alpha", "ia3", until="predict", answers=["x"] * 20)
    assert isinstance(read_items(store.root / gone.scores, store.root), NotComputable)


def test_seeds_become_one_configuration_only_on_the_same_items() -> None:
    one, two = items([1.0, 2.0]), items([3.0, 4.0])
    both = over_seeds([one, two])
    assert isinstance(both, Items) and both.scores.shape == (2, 2) and both.value == 2.5
    assert "different test items" in str(over_seeds([one, items([1.0])]))
    assert str(over_seeds([one, NotComputable("diverged")])) == "not computable: diverged"
    assert isinstance(over_seeds([]), NotComputable)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_variance_components_are_those_of_the_mixed_model() -> None:
    import warnings

    import pandas
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(4)
    y = 50 + rng.normal(0, 3, (1, 25)) + rng.normal(0, 2, (6, 1)) + rng.normal(0, 1, (6, 25))
    found = variance_components(items(y))
    assert not isinstance(found, NotComputable)
    long = pandas.DataFrame(
        {"y": y.ravel(), "seed": np.repeat(np.arange(6), 25), "item": np.tile(np.arange(25), 6), "all": 1}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        formula = {"seed": "0 + C(seed)", "item": "0 + C(item)"}
        model = smf.mixedlm("y ~ 1", long, groups="all", vc_formula=formula, re_formula="0").fit(reml=True)
    names = model.model.exog_vc.names
    reml = dict(zip(names, model.vcomp, strict=True))
    assert found.seed == pytest.approx(reml["seed"], rel=0.02)
    assert found.item == pytest.approx(reml["item"], rel=0.02)
    assert found.rest == pytest.approx(model.scale, rel=0.02)


def test_one_seed_leaves_the_seed_variance_unknown() -> None:
    found = variance_components(items([1.0, 2.0, 4.0]))
    assert not isinstance(found, NotComputable)
    assert (found.seed, found.rest, found.spread) == (None, None, None)
    assert found.item == pytest.approx(np.var([1, 2, 4], ddof=1))
    assert str(found) == "spread over seeds unknown: one seed"
    assert isinstance(variance_components(items([1.0])), NotComputable)


def test_equal_seeds_have_no_seed_variance_and_the_spread_has_an_interval() -> None:
    same = variance_components(items([[1.0, 2.0, 4.0]] * 3))
    assert not isinstance(same, NotComputable) and (same.seed, same.rest, same.spread) == (0.0, 0.0, 0.0)
    found = variance_components(items([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]))
    assert not isinstance(found, NotComputable) and found.spread == pytest.approx(1.0)
    assert found.spread_low is not None and found.spread_high is not None
    assert (found.spread_low, found.spread_high) == pytest.approx((0.5207, 6.2847), abs=1e-3)  # tables, df 2


def test_spreads_of_two_groups_are_compared_by_the_f_test() -> None:
    found = spread_contrast([3.0, 1.0], [4, 6], [1.0, -1.0], draws=100_000)
    assert isinstance(found, SpreadTest) and found.factor == pytest.approx(3.0)
    exact = 2 * stats.f.sf(9.0, 3, 5)
    assert found.p == pytest.approx(exact, abs=0.006)
    low = 3.0 / math.sqrt(stats.f.ppf(0.975, 3, 5))
    assert found.low == pytest.approx(low, rel=0.05)


@pytest.mark.parametrize(
    ("spreads", "seeds", "weights", "why"),
    [
        ([1.0], [3], [1.0], "fewer than two"),
        ([1.0, 2.0], [3, 1], [1.0, -1.0], "one seed"),
        ([1.0, 0.0], [3, 3], [1.0, -1.0], "equal scores"),
        ([1.0, 2.0], [3, 3], [0.0, 0.0], "one level only"),
    ],
)
def test_spreads_that_cannot_be_compared(spreads: list, seeds: list, weights: list, why: str) -> None:
    assert why in str(spread_contrast(spreads, seeds, weights))


# --- ranks ------------------------------------------------------------------------------------------------------------


def published(connector: str) -> dict[str, list[float]]:
    table = pl.read_csv(TABLES / "table1_main.csv").filter(pl.col("dataset") != "avg")
    wide = table.filter(pl.col("connector") == connector).pivot(
        on="method", index=["model", "dataset"], values="score"
    )
    return {method: wide[method].to_list() for method in ("adapter", "lora", "ia3", "prefix")}


def ranked(scores: dict, **more: object) -> Ranking:
    found = rank_methods(scores, **more)  # type: ignore[arg-type]
    assert isinstance(found, Ranking), str(found)
    return found


def test_table_1_of_the_paper_shows_no_best_method() -> None:
    tuned, frozen = ranked(published("tuned")), ranked(published("frozen"))
    assert (tuned.blocks, tuned.dropped) == (32, 0)
    assert not isinstance(tuned.friedman, NotComputable) and not isinstance(frozen.friedman, NotComputable)
    assert tuned.friedman.p == pytest.approx(0.5639916, abs=1e-6)
    assert frozen.friedman.p == pytest.approx(0.0119993, abs=1e-6)
    assert tuned.mean_ranks == [2.5, 2.375, 2.359375, 2.765625]
    assert frozen.rank("adapter") == frozen.rank("lora") == 2.125 < frozen.rank("prefix") < frozen.rank("ia3")
    assert tuned.critical_difference == pytest.approx(0.8291, abs=1e-3)
    pair = frozen.pair("lora", "ia3")
    assert pair is not None and (pair.wins, pair.ties, pair.losses) == (25, 0, 7)
    assert pair.p_holm == pytest.approx(0.00138, abs=1e-4)
    back = frozen.pair("ia3", "lora")
    assert back is not None and (back.wins, back.difference) == (7, -pair.difference)


def test_ranks_by_hand_with_ties_and_lower_is_better() -> None:
    scores = {"a": [3.0, 2.0, 1.0], "b": [3.0, 1.0, 1.0], "c": [1.0, 1.0, 1.0]}
    found = ranked(scores)
    assert found.mean_ranks == pytest.approx([(1.5 + 1 + 2) / 3, (1.5 + 2.5 + 2) / 3, (3 + 2.5 + 2) / 3])
    assert ranked(scores, higher_is_better=False).mean_ranks == pytest.approx(
        [4 - r for r in found.mean_ranks]
    )


def test_pairwise_tests_are_those_of_the_libraries() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(6)
    scores = {name: list(rng.normal(i / 2, 1, 20)) for i, name in enumerate("abc")}
    found = ranked(scores)
    assert not isinstance(found.pairs, NotComputable)
    raw = [stats.wilcoxon(scores[x], scores[y]).pvalue for x, y in ("ab", "ac", "bc")]
    assert [pair.p for pair in found.pairs] == pytest.approx(raw)
    assert [pair.p_holm for pair in found.pairs] == pytest.approx(multipletests(raw, method="holm")[1])
    distance = abs(found.rank("a") - found.rank("c")) / math.sqrt(3 * 4 / (6 * 20)) * math.sqrt(2)
    pair = found.pair("a", "c")
    assert pair is not None
    assert pair.p_nemenyi == pytest.approx(stats.studentized_range.sf(distance, 3, math.inf), abs=1e-6)
    for values in ([0.04, 0.01, 0.03], [0.5], [1.0, 1.0], [0.01, 0.01, 0.01, 0.2]):
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    assert holm([]) == []


def test_incomplete_blocks_are_left_out_and_counted() -> None:
    found = ranked({"a": [1.0, 2.0, None, 4.0], "b": [0.0, 1.0, 2.0, math.nan], "c": [0.5, 0.0, 1.0, 0.0]})
    assert (found.blocks, found.dropped) == (2, 2)
    nothing = rank_methods({"a": [None, None], "b": [1.0, 2.0]})
    assert str(nothing) == "not computable: no block has a score of every method (a: 0, b: 2 of 2)"


def test_rankings_of_rare_shapes_say_what_they_cannot() -> None:
    assert "fewer than two methods" in str(rank_methods({"a": [1.0]}))
    one_block = ranked({"a": [1.0], "b": [2.0], "c": [3.0]})
    assert one_block.mean_ranks == [3.0, 2.0, 1.0]
    for part in (one_block.friedman, one_block.critical_difference, one_block.pairs):
        assert str(part) == "not computable: one block only"
    assert one_block.pair("a", "b") is None
    two = ranked({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 2.5]})
    assert isinstance(two.friedman, NotComputable) and not isinstance(two.pairs, NotComputable)
    assert two.pairs[0].p_nemenyi is None and two.pairs[0].wins == 3
    tied = ranked({name: [5.0, 6.0, 7.0] for name in "abc"})
    assert not isinstance(tied.friedman, NotComputable) and (tied.friedman.statistic, tied.friedman.p) == (
        0.0,
        1.0,
    )
    assert tied.mean_ranks == [2.0, 2.0, 2.0] and tied.pair("a", "b").p == 1.0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="different numbers of blocks"):
        rank_methods({"a": [1.0], "b": [1.0, 2.0]})


def test_rounding_noise_does_not_break_ties() -> None:
    noisy = ranked({"a": [0.1 + 0.2, 1.0], "b": [0.3, 1.0]})
    assert noisy.mean_ranks == [1.5, 1.5]
    assert signed_rank([1e-12, -1e-13]) == 1.0
    assert isinstance(friedman(np.array([[1.0, 2.0, 3.0]])), NotComputable)


def test_the_diagram_groups_what_the_critical_difference_cannot_tell(tmp_path: Path) -> None:
    found = ranked(published("frozen"))
    assert groups(found) == [(0, 3)]
    clear = ranked({name: [float(i)] * 30 for i, name in enumerate("abc")})
    assert groups(clear) == []
    first = save_ranks(found, "Frozen", tmp_path, "cd")
    before = {kind: path.read_bytes() for kind, path in first.items()}
    assert before["png"].startswith(b"\x89PNG") and b"<svg" in before["svg"]
    again = save_ranks(found, "Frozen", tmp_path, "cd")
    assert {kind: path.read_bytes() for kind, path in again.items()} == before
    save_ranks(ranked({"a": [1.0], "b": [2.0]}), "One block", tmp_path, "one")  # no CD, no Friedman, no error


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_the_sign_flip_test_is_that_of_scipy_and_its_interval_inverts_it() -> None:
    d = [1.7, 0.6, 13.2, 1.5, 0.5, -0.5, 13.5, 1.2]
    found = block_mean(d)
    assert not isinstance(found, NotComputable)
    reference = stats.permutation_test(
        (np.array(d),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert found.p() == pytest.approx(reference.pvalue)
    low, high = found.interval()
    assert found.p(low - 1e-3) < 0.05 <= found.p(low + 1e-3)
    assert found.p(high + 1e-3) < 0.05 <= found.p(high - 1e-3)
    rng = np.random.default_rng(0)
    many = block_mean(list(rng.normal(0.5, 1, 40)))
    assert not isinstance(many, NotComputable)
    t_low, t_high = stats.t.interval(0.95, 39, loc=many.effect, scale=many.stderr)
    assert many.interval() == pytest.approx((t_low, t_high), abs=0.02)


def test_few_blocks_and_equal_blocks() -> None:
    assert "1 complete block only" in str(block_mean([1.0]))
    assert "0 complete blocks only" in str(block_mean([]))
    three = block_mean([1.0, 2.0, 3.0])
    assert not isinstance(three, NotComputable) and three.p() == 0.25
    assert three.interval() == pytest.approx(stats.t.interval(0.95, 2, loc=2.0, scale=3**-0.5))
    same = block_mean([2.0] * 8)
    assert not isinstance(same, NotComputable) and same.interval() == (2.0, 2.0) and same.p(2.0) == 1.0
    assert Normal(effect=1.0, stderr=0.0).p() == 0.0 and Normal(effect=0.0, stderr=0.0).p() == 1.0


def test_shares_and_trends() -> None:
    found = share([1.0] * 8 + [-1.0] * 2)
    assert not isinstance(found, NotComputable)
    assert found.p == pytest.approx(stats.binomtest(8, 10).pvalue)
    half = share([0.0, 0.0])
    assert not isinstance(half, NotComputable) and (half.wins, half.p) == (1.0, 1.0)
    assert isinstance(share([]), NotComputable)
    rows = [[1.0, 2.0, 3.0], [2.0, 3.0, 5.0], [1.0, 4.0, 6.0], [0.0, 1.0, 1.5]]
    trend = page_trend(rows)
    assert not isinstance(trend, NotComputable)
    assert trend.rising == pytest.approx(stats.page_trend_test(rows).pvalue)
    assert trend.rising < 0.01 < 0.9 < trend.falling
    assert "fewer than three levels" in str(page_trend([[1.0, 2.0]] * 3))
    assert "one complete block" in str(page_trend([[1.0, 2.0, 3.0]]))
    flat = page_trend([[1.0, 1.0, 1.0]] * 2)
    assert not isinstance(flat, NotComputable) and flat.p == 1.0


# --- ties with the best -----------------------------------------------------------------------------------------------


def test_pairs_tell_apart_what_intervals_of_their_own_do_not() -> None:
    rng = np.random.default_rng(11)
    base = (rng.random(1000) < 0.5) * 100.0
    better = base.copy()
    better[np.flatnonzero(base == 0)[:20]] = 100.0  # two points, all in one direction
    noise = np.where(rng.random(1000) < 0.5, base, (rng.random(1000) < 0.5) * 100.0)
    found = tied_with_best([[items(better)], [items(base)], [items(better)]])
    assert isinstance(found, Ties)
    assert (found.best, found.tied) == (0, [True, False, True])  # though 48..54 and 46..52 overlap
    unpaired = tied_with_best([[items(better)], [items(noise)]])
    assert isinstance(unpaired, Ties) and unpaired.p[0] == 1.0
    lower = tied_with_best([[items(better)], [items(base)]], higher_is_better=False)
    assert isinstance(lower, Ties) and (lower.best, lower.tied) == (1, [False, True])


def test_averages_are_compared_over_all_their_test_sets() -> None:
    rng = np.random.default_rng(12)
    a, b = rng.normal(size=200), rng.normal(size=300)
    found = tied_with_best([[items(a + 0.5), items(b)], [items(a), items(b)]])
    assert isinstance(found, Ties) and found.tied == [True, False]
    assert "different test sets" in str(tied_with_best([[items(a)], [items(a), items(b)]]))
    assert "fewer than two" in str(tied_with_best([[items(a)]]))
    assert "different test items" in str(tied_with_best([[items(a)], [items(b)]]))


# --- power ------------------------------------------------------------------------------------------------------------


def test_items_needed_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(13)
    d = rng.normal(0, 1, 400)
    d = (d - d.mean()) / d.std(ddof=1) * 10  # standard deviation 10, no more, no less
    found = plan_comparison(items(d), items(np.zeros(400)), difference=0.5)
    assert not isinstance(found, NotComputable)
    textbook = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 10 / 0.5) ** 2  # 3139.6
    assert found.items_needed == pytest.approx(textbook, rel=0.002)
    assert not found.seed_known and found.seeds_needed is None and "seed variance unknown" in str(found)
    assert found.power_now == pytest.approx(0.17, abs=0.01)


def test_where_seeds_dominate_no_number_of_items_can_settle_it() -> None:
    rng = np.random.default_rng(14)
    item = rng.normal(size=2000)
    left = items(item + np.array([[-1.0], [0.0], [1.0]]) + rng.normal(0, 0.1, (3, 2000)))
    right = items(item - 0.3 + np.array([[1.0], [-1.0], [0.0]]) + rng.normal(0, 0.1, (3, 2000)))
    found = plan_comparison(left, right, hours_per_seed=2.5)
    assert not isinstance(found, NotComputable)
    assert found.seed_known and found.items_needed is None
    assert "no number of test items can settle it: seed variance dominates" in str(found)
    # two groups with variance 1 each, 0.3 apart: (1.96 + 0.84)^2 * 2 / 0.09, and a little for t
    assert found.seeds_needed == pytest.approx(175, abs=5)
    assert found.hours == pytest.approx((found.seeds_needed - 3) * 2.5)  # type: ignore[operator]
    assert "more machine hours" in str(found)


def test_plans_of_rare_shapes() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.normal(size=50), rng.normal(size=50)
    parts = parts_of([[(1.0, items(a)), (-1.0, items(b))]])
    assert isinstance(parts, list) and parts[0].seed is None
    assert "no difference to look for" in str(plan(parts, 0.0, 1))
    assert "no test set" in str(plan([], 1.0, 1)) and "no test set" in str(parts_of([]))
    assert "different test items" in str(plan_comparison(items(a), items(a[:9])))
    same = plan_comparison(items(a), items(a), difference=1.0)
    assert not isinstance(same, NotComputable) and same.power_now == 1.0 and same.items_needed == 50
    hopeless = plan_comparison(items(a), items(b), difference=1e-9)
    assert not isinstance(hopeless, NotComputable)
    assert "no number of test items can settle it: the difference is too small" in str(hopeless)


def test_blocks_needed_are_those_of_the_t_test() -> None:
    from statsmodels.stats.power import TTestPower

    for effect, deviation in ((1.0, 2.0), (0.5, 4.0)):
        exact = TTestPower().solve_power(effect / deviation, power=0.8, alpha=0.05)
        assert blocks_needed(effect, deviation) == pytest.approx(exact, abs=1.5)
    assert (
        blocks_needed(0.0, 1.0) is None and blocks_needed(1.0, 0.0) == 2 and blocks_needed(1e-6, 1.0) is None
    )
