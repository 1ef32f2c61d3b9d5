"""Claims: the file and its mistakes, verdicts on the published tables, on made-up runs, and in every rare case."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import yaml

from fake_store import FakeStore, coin, example, table_spec
from peftbench.analysis.claims import find, test_claims
from peftbench.analysis.claims_data import level, order
from peftbench.analysis.claims_result import Finding
from peftbench.claims_file import read_claims, read_tables
from peftbench.claims_types import Claims
from peftbench.errors import UserError
from peftbench.views import Cell, ClaimsSpec

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "paper/tables"
N = 60


@pytest.fixture(scope="module")
def claims() -> Claims:
    return read_claims(ROOT / "config/claims.yaml", TABLES)


@pytest.fixture(scope="module")
def published(claims: Claims) -> dict[str, list[dict[str, str]]]:
    return read_tables(claims, TABLES)


@pytest.fixture(scope="module")
def findings(claims: Claims, published: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """On the published tables, by claim."""
    spec = ClaimsSpec(claims=claims, studies=[], published=published)
    return {f.claim: f for f in find(spec, tmp_path_factory.mktemp("results")) if f.source == "paper"}


VERDICTS = {
    "adapter_best": ("undecided", 1, 2),
    "connector_most_models": ("undecided", 3, 4),
    "connector_usually": ("undecided", 1, 1),
    "more_parameters_unseen": ("supported", 2, 2),
    "fewer_parameters_seen": ("undecided", 2, 2),
    "ia3_13b_best_of_all": ("undecided", 1, 1),
    "larger_model_better": ("undecided", 6, 8),
    "sharegpt_surpasses_llava": ("undecided", 7, 8),
    "qwen_best_lora_frozen": ("undecided", 0, 1),
    "qwen_connector_harms_seen": ("undecided", 1, 1),
    "connector_helps_unseen": ("undecided", 2, 3),
    "ia3_gains_from_connector": ("supported", 1, 1),
    "adapter_consistent": ("supported", 2, 2),
    "lora_adapter_best_unseen": ("undecided", 2, 2),
    "ia3_prefix_best_okvqa_vqav2": ("undecided", 2, 2),
    "unseen_tune": ("supported", 1, 1),
    "seen_freeze": ("supported", 1, 1),
    "both_best_llava": ("undecided", 2, 2),
    "mlp_best_llava": ("undecided", 1, 1),
    "both_best_qwen": ("supported", 2, 2),
    "mlp_best_qwen": ("supported", 1, 1),
    "high_resource_best": ("undecided", 4, 4),
    "low_to_medium_ten_percent": ("undecided", 4, 4),
    "unseen_wants_data": ("undecided", 4, 4),
    "seen_gains_nothing": ("refuted", 3, 4),
    "adapter_stabilises_okvqa": ("undecided", 1, 1),
    "adapter_destabilises_sqa": ("undecided", 1, 1),
    "lora_destabilises_okvqa": ("undecided", 1, 1),
    "lora_stabilises_sqa": ("undecided", 1, 1),
    "prefix_unstable_unseen": ("undecided", 1, 1),
    "adapter_most_stable": ("refuted", 0, 1),
    "small_rates_stable": ("supported", 2, 2),
    "adapter_generalises_best": ("undecided", 1, 1),
    "prefix_generalises_poorly": ("supported", 1, 1),
    "first_epoch_best": ("undecided", 3, 3),
    "lora_third_epoch_best": ("undecided", 1, 1),
    "mmhal_score": ("undecided", 2, 2),
    "mmhal_rate": ("undecided", 1, 2),
    "fewest_hallucinations": ("undecided", 1, 1),
    "others_hallucinate_more": ("undecided", 0, 3),
    "vision_tower_degrades": ("undecided", 1, 1),
    "connector_always_better": ("supported", 1, 1),
    "ia3_connector_cheaper": ("undecided", 1, 1),
}
"""Claim -> its verdict on the published table, and in how many of its comparisons the bare numbers agree."""


def test_verdicts_on_the_published_tables(findings: dict[str, Finding]) -> None:
    assert {n: (f.verdict, f.holding, len(f.comparisons)) for n, f in findings.items()} == VERDICTS


def test_numbers_behind_the_verdicts(findings: dict[str, Finding]) -> None:
    tuned, frozen = (
        next(c for c in findings["adapter_best"].comparisons if c.name == name)
        for name in ("tuned", "frozen")
    )
    assert tuned.p is not None and tuned.ranking is not None and frozen.ranking is not None
    assert "Friedman p = 0.56" in tuned.reason and "Friedman p = 0.012" in frozen.reason
    assert tuned.ranking.mean_ranks == [2.5, 2.359375, 2.375, 2.765625]  # methods by name
    assert frozen.ranking.rank("adapter") == frozen.ranking.rank("lora") == min(frozen.ranking.mean_ranks)
    (ia3,) = findings["ia3_gains_from_connector"].comparisons
    assert ia3.effect == pytest.approx(15.035) and ia3.blocks == 20
    lora = next(c for c in findings["connector_helps_unseen"].comparisons if c.name == "lora")
    assert lora.effect == pytest.approx(82.86 - 83.35) and lora.holds is False
    scale = {c.name: c.effect for c in findings["low_to_medium_ten_percent"].comparisons}
    assert scale == pytest.approx({"adapter": 13.3, "lora": 10.3, "ia3": 14.2, "prefix": 16.3}, abs=0.1)
    seen = next(c for c in findings["seen_gains_nothing"].comparisons if c.name == "prefix")
    assert seen.outcome == "refuted" and seen.effect == pytest.approx(34.9 / 3)
    smaller = {c.name: c.effect for c in findings["larger_model_better"].comparisons if c.holds is False}
    assert smaller == pytest.approx({"prefix, frozen": -0.2125, "prefix, tuned": -0.4375}, abs=0.05)
    counts = findings["fewest_hallucinations"].comparisons[0]
    assert counts.effect == pytest.approx(13.25 - 16.0)
    # by hand: 13.25 % and 16 % of the same 100 pictures each, not paired
    error = (13.25 * 86.75 + 16 * 84) ** 0.5 / 10
    assert counts.low is not None and (counts.effect or 0) - counts.low == pytest.approx(
        1.96 * error, rel=0.02
    )


def test_every_published_number_is_a_number_and_averages_are_only_repeats(published: dict) -> None:
    table = pl.DataFrame(published["table1_main"]).with_columns(pl.col("score").cast(pl.Float64))
    assert len(table) == 4 * 4 * 2 * 9
    keys = ["model", "method", "connector"]
    own = table.filter(pl.col("dataset") != "avg").group_by(keys).agg(pl.col("score").mean().alias("own"))
    both = table.filter(pl.col("dataset") == "avg").join(own, on=keys)
    assert both.select((pl.col("score") - pl.col("own")).abs().max()).item() < 0.07


def test_spellings_of_values() -> None:
    assert level("1k") == level(1000) == 1000.0 and level("2e-4") == level(0.0002)
    assert level("near2", {"near2": 2}) == 2.0 and level(True) == "true" and level("both") == "both"
    assert sorted(["full", 10000.0, 5000.0], key=order) == [5000.0, 10000.0, "full"]


def test_a_table_that_is_not_there_is_one_line(claims: Claims, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claims\.yaml: published: .*table1_main\.csv: No such file"):
        read_tables(claims, tmp_path)


# --- the file ---------------------------------------------------------------------------------------------------------


def body(**changes: Any) -> dict[str, Any]:
    test = {"statistic": "difference", "left": {"connector": "tuned"}, "right": {"connector": "frozen"}}
    test |= {"blocks": ["dataset"]}
    claim: dict[str, Any] = {"quote": "It helps.", "place": "1", "study": "trial", "test": test}
    for key, value in changes.items():
        claim[key] = claim["test"] | value if key == "test" else value
    return claim


def written(tmp_path: Path, claim: dict[str, Any], name: str = "it_helps", **top: Any) -> Path:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"title": "Claims", "claims": {name: claim}, **top}))
    return path


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"qoute": "x"}, r"claims\.it_helps: unknown key 'qoute'; did you mean 'quote'\?"),
    (
        {"test": {"statistic": "diference"}},
        r"it_helps\.test\.statistic: unknown 'diference'; did you mean 'difference'\?",
    ),
    ({"test": {"blocs": ["dataset"]}}, r"it_helps\.test: unknown key 'blocs'; did you mean 'blocks'\?"),
    (
        {"test": {"blocks": ["datset"]}},
        r"it_helps\.test\.blocks: unknown axis 'datset'; did you mean 'dataset'\?",
    ),
    (
        {"test": {"left": {"conector": "tuned"}}},
        r"test\.left: unknown axis 'conector'; did you mean 'connector'\?",
    ),
    ({"test": {"direction": "grater"}}, r"it_helps\.test\.direction: invalid enum value 'grater'"),
    ({"test": {"direction": "same"}}, r"it_helps\.test\.margin: 'same' needs a margin above 0"),
    ({"test": {"left": {}}}, r"it_helps\.test: left and right have to say"),
    (
        {"published": {"table": "table1_mian"}},
        r"published\.table: no table1_mian\.csv; did you mean 'table1_main'\?",
    ),
    (
        {"published": {"table": "table15_efficiency", "value": "train_flop"}},
        r"published\.value: no column 'train_flop'; did you mean 'train_flops'\?",
    ),
    ({"study": ""}, r"it_helps: neither study nor published"),
    ({"alpha": 2}, r"it_helps\.alpha: "),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_name_claim_key_and_nearest_name(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_claims(written(tmp_path, body(**change)), TABLES)
    assert "\n" not in str(error.value) and str(error.value).startswith("config/claims.yaml: ")


def test_mistakes_of_other_tests(tmp_path: Path) -> None:
    def refused(test: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=re.escape(message)):
            read_claims(written(tmp_path, body() | {"test": test}), TABLES)

    refused({"left": {}}, "key 'statistic' is missing; there is difference, best, trend, share, spread")
    refused(
        {"statistic": "best", "over": "method", "target": {"model": "x"}},
        "target: expected a value of method",
    )
    refused({"statistic": "best", "over": [], "target": []}, "over and target have to name")
    refused(
        {"statistic": "spread", "along": "size", "direction": "greater"},
        "does not go with it: rising or falling",
    )
    with pytest.raises(UserError, match="claims: expected a claim under each id"):
        path = tmp_path / "other.yaml"
        path.write_text("title: x\n")
        read_claims(path)
    with pytest.raises(UserError, match="lower-case letters"):
        read_claims(written(tmp_path, body(), name="It Helps"))
    with pytest.raises(UserError, match="unknown key 'aliasses'; did you mean 'aliases'"):
        read_claims(written(tmp_path, body(), aliasses={}))


# --- our runs ---------------------------------------------------------------------------------------------------------

SETS = [f"set{i}" for i in range(7)]


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path / "results")
    for name in SETS:
        made.dataset(name, [example(made, name, i) for i in range(N)])
    return made


def run(
    store: FakeStore, dataset: str, method: str, connector: str, share: float, seed: int = 1, **more: Any
) -> Cell:
    place = sum(map(ord, dataset + method + connector)) + seed
    more.setdefault("scores", coin(share, N, place))
    return store.run(dataset, method, connector, answers=["x"] * N, seed=seed, **more)


def verdict(
    store: FakeStore, cells: list[Cell], tmp_path: Path, claim: dict[str, Any], **top: Any
) -> Finding:
    claims = read_claims(written(tmp_path, claim, **top), TABLES)
    study = table_spec(cells)
    (found,) = find(ClaimsSpec(claims=claims, studies=[study], published={}), store.root)
    return found


def tuned_and_frozen(store: FakeStore, high: float, low: float, **more: Any) -> list[Cell]:
    return [
        run(store, dataset, "lora", connector, share, **more)
        for dataset in SETS
        for connector, share in (("tuned", high), ("frozen", low))
    ]


def test_a_clear_difference_is_supported_and_its_opposite_refuted(store: FakeStore, tmp_path: Path) -> None:
    cells = tuned_and_frozen(store, 0.8, 0.4)
    found = verdict(store, cells, tmp_path, body())
    assert (found.verdict, found.runs, found.missing) == ("supported", 14, 0)
    shown = found.decisive
    assert shown is not None and shown.p == pytest.approx(2 / 2**7) and shown.blocks == 7
    assert shown.low is not None and shown.low > 0
    assert verdict(store, cells, tmp_path, body(test={"direction": "less"})).verdict == "refuted"
    same = body(test={"direction": "same", "margin": 5})
    assert verdict(store, cells, tmp_path, same).verdict == "refuted"
    assert verdict(store, cells, tmp_path, body(test={"margin": 200, "relative": True})).verdict == "refuted"
    assert verdict(store, cells, tmp_path, body(test={"margin": 20, "relative": True})).verdict == "supported"
    alike = tuned_and_frozen(store, 0.5, 0.5, train_size=900, scores=coin(0.5, N, 1))
    assert verdict(store, alike, tmp_path, same).verdict == "supported"
    assert verdict(store, alike, tmp_path, body()).verdict == "undecided"


def test_test_items_as_the_sample_need_no_more_than_one_block(store: FakeStore, tmp_path: Path) -> None:
    cells = [run(store, "set0", "lora", c, share) for c, share in (("tuned", 0.9), ("frozen", 0.3))]
    by_blocks = verdict(store, cells, tmp_path, body())
    assert by_blocks.verdict == "undecided" and by_blocks.on_items == "supported"
    assert "1 complete block only" in by_blocks.comparisons[0].reason
    found = verdict(store, cells, tmp_path, body(test={"by": "items"}))
    assert found.verdict == "supported" and "one seed" in found.comparisons[0].reason
    close = [run(store, "set1", "lora", c, share) for c, share in (("tuned", 0.52), ("frozen", 0.5))]
    open_ = verdict(store, close, tmp_path, body(test={"by": "items"}))
    assert open_.verdict == "undecided" and "test items" in open_.comparisons[0].settle
    assert "run a second seed" in open_.comparisons[0].settle


def test_more_seeds_are_planned_with_what_they_cost(store: FakeStore, tmp_path: Path) -> None:
    cells = []
    for seed, shift in ((1, -0.15), (2, 0.15), (3, 0.0)):
        for connector, share in (("tuned", 0.62 + shift), ("frozen", 0.5 - shift)):
            cells.append(run(store, "set0", "lora", connector, share, seed=seed))
    found = verdict(store, cells, tmp_path, body(test={"by": "items"}))
    shown = found.comparisons[0]
    assert found.verdict == "undecided" and found.runs == 6
    assert "seeds would settle it (there are 3, about" in shown.settle and "machine hours" in shown.settle
    assert "one seed" not in shown.reason


def test_missing_and_failed_runs_are_counted_and_their_blocks_left_out(
    store: FakeStore, tmp_path: Path
) -> None:
    cells = tuned_and_frozen(store, 0.8, 0.4)
    dead = run(store, "set0", "lora", "tuned", 0.5, seed=9, until="train", failed={"train": "loss is nan"})
    gone = run(store, "set1", "lora", "tuned", 0.5, seed=9, until="none")
    cells = [c for c in cells if (c.dataset, c.connector) not in {("set0", "tuned"), ("set1", "tuned")}]
    found = verdict(store, [*cells, dead, gone], tmp_path, body())
    assert (found.runs, found.missing) == (14, 2)
    assert found.decisive is not None and (found.decisive.blocks, found.decisive.dropped) == (5, 2)
    assert found.verdict == "undecided"  # five blocks cannot decide
    nothing = verdict(store, [dead, gone], tmp_path, body())
    assert nothing.verdict == "not run" and nothing.reason.startswith(
        "2 of 2 runs are missing (failed: training"
    )


def test_claims_without_a_study_or_without_its_axes_are_not_run(store: FakeStore, tmp_path: Path) -> None:
    cells = tuned_and_frozen(store, 0.8, 0.4)
    assert verdict(store, cells, tmp_path, body(study="other")).reason == "there is no study other"
    size = {"statistic": "trend", "along": "size", "blocks": ["dataset"]}
    found = verdict(store, cells, tmp_path, body() | {"test": size}, aliases={"size": ["rank"]})
    assert (found.verdict, found.reason) == ("not run", "its runs have no axis size")
    where = verdict(store, cells, tmp_path, body(test={"where": {"model": "giant"}}))
    assert (where.verdict, where.reason) == ("not run", "no run of the study is giant")
    fact = body() | {"ours": {"fact": "flops.train"}}
    none = verdict(store, cells, tmp_path, fact)
    assert none.verdict == "not run" and "no number flops.train" in none.reason


def test_measures_of_one_run_that_go_opposite_ways(store: FakeStore, tmp_path: Path) -> None:
    """The claim says which measure it is about; one that does not has no verdict, and the others keep theirs."""
    measures = {"score": "value", "rate": "extra.rate"}
    cells = []
    for cell in tuned_and_frozen(store, 0.8, 0.4):
        path = store.root / cell.scores / "record.json"
        record = json.loads(path.read_text())
        record["facts"]["extra"]["rate"] = {
            "value": 100 - record["facts"]["value"],
            "stderr": 1.0,
            "n": N,
            "higher_is_better": False,
        }
        path.write_text(json.dumps(record))
        cells += [msgspec.structs.replace(cell, measure=name) for name in measures]
    study = table_spec(
        cells, columns="measure", rows=["dataset", "connector"], averages=[], measures=measures
    )

    def of(claim: dict[str, Any]) -> Finding:
        claims = read_claims(written(tmp_path, claim), TABLES)
        (found,) = find(ClaimsSpec(claims=claims, studies=[study], published={}), store.root)
        return found

    score = of(body(test={"where": {"measure": "score"}}))
    assert (score.verdict, score.runs) == ("supported", 14) and (score.decisive.effect or 0) > 0
    rate = of(body(test={"where": {"measure": "rate"}}))
    assert rate.verdict == "supported", "tuned lowers the rate, which is better"
    both = of(body())
    assert both.verdict == "not run" and "worse in others" in both.reason
    facts = test_claims(
        ClaimsSpec(claims=read_claims(written(tmp_path, body()), TABLES), studies=[study], published={}),
        store.root,
        tmp_path / "out",
    )
    assert facts["verdicts"]["ours"]["not run"] == 1


def test_the_best_the_trend_the_share_and_the_spread(store: FakeStore, tmp_path: Path) -> None:
    methods = {"lora": 0.9, "adapter": 0.5, "ia3": 0.45}
    cells = [run(store, d, m, "tuned", s) for d in SETS for m, s in methods.items()]
    best = {"statistic": "best", "over": "method", "blocks": ["dataset"]}
    good = verdict(store, cells, tmp_path, body() | {"test": best | {"target": {"method": "lora"}}})
    assert good.verdict == "supported" and good.comparisons[0].ranking is not None
    bad = verdict(store, cells, tmp_path, body() | {"test": best | {"target": {"method": "ia3"}}})
    assert bad.verdict == "refuted" and bad.decisive is not None and "ia3 against lora" in bad.decisive.reason
    absent = verdict(store, cells, tmp_path, body() | {"test": best | {"target": {"method": "prefix"}}})
    assert absent.verdict == "not run"
    sizes = [
        run(store, d, "lora", "frozen", s, train_size=n)
        for d in SETS
        for n, s in ((100, 0.2), (500, 0.5), (900, 0.9))
    ]
    trend = {"statistic": "trend", "along": "train_size", "blocks": ["dataset"]}
    rising = verdict(store, sizes, tmp_path, body() | {"test": trend})
    assert rising.verdict == "supported" and rising.decisive is not None
    assert rising.decisive.effect == pytest.approx(70, abs=8)
    assert (
        verdict(store, sizes, tmp_path, body() | {"test": trend | {"direction": "falling"}}).verdict
        == "refuted"
    )
    part = {
        "statistic": "share",
        "left": {"method": "lora"},
        "right": {"method": "ia3"},
        "blocks": ["dataset"],
    }
    share = verdict(store, cells, tmp_path, body() | {"test": part})
    assert share.verdict == "supported" and share.decisive is not None and share.decisive.effect == 100.0
    spread = {
        "statistic": "spread",
        "left": {"method": "lora"},
        "right": {"method": "ia3"},
        "blocks": ["dataset"],
    }
    one_seed = verdict(store, cells, tmp_path, body() | {"test": spread})
    assert one_seed.verdict == "undecided" and "one seed" in one_seed.comparisons[0].reason
    seeded = [
        run(store, d, m, "frozen", 0.5, seed=s, scores=[50.0 + w * (s - 2)] * N)
        for d in SETS[:4]
        for m, w in (("lora", 9.0), ("ia3", 1.0))
        for s in (1, 2, 3)
    ]
    wide = verdict(store, seeded, tmp_path, body() | {"test": spread})
    assert wide.verdict == "supported" and wide.decisive is not None
    assert wide.decisive.effect == pytest.approx(9.0)


def test_all_comparisons_have_to_hold_and_most_is_more_than_half(store: FakeStore, tmp_path: Path) -> None:
    shares = {"lora": (0.9, 0.3), "adapter": (0.9, 0.3), "ia3": (0.3, 0.9)}
    cells = [
        run(store, d, m, c, s)
        for d in SETS
        for m, pair in shares.items()
        for c, s in zip(("tuned", "frozen"), pair, strict=True)
    ]
    every = verdict(store, cells, tmp_path, body(test={"each": ["method"]}))
    assert every.verdict == "refuted" and every.holding == 2
    assert every.decisive is not None and every.decisive.name == "ia3"
    most = verdict(store, cells, tmp_path, body(test={"each": ["method"], "quantifier": "most"}))
    assert most.verdict == "supported"


def test_models_and_data_sets_take_part_under_what_they_stand_for(store: FakeStore, tmp_path: Path) -> None:
    cells = tuned_and_frozen(store, 0.8, 0.4)
    claim = body(test={"where": {"dataset": [f"paper_{name}" for name in SETS[:6]], "familiarity": "seen"}})
    found = verdict(store, cells, tmp_path, claim, familiarity={"seen": [f"paper_{name}" for name in SETS]})
    assert found.decisive is not None and found.decisive.blocks == 6


def test_files_are_written_whole_and_the_same_twice(
    store: FakeStore, tmp_path: Path, claims: Claims, published: dict
) -> None:
    names = ("adapter_best", "ia3_gains_from_connector", "seen_gains_nothing")
    some = msgspec.structs.replace(claims, claims={name: claims.claims[name] for name in names})
    study = msgspec.structs.replace(table_spec(tuned_and_frozen(store, 0.8, 0.4)), study="table1_main")
    spec = ClaimsSpec(claims=some, studies=[study], published=published)
    facts = test_claims(spec, store.root, tmp_path / "out")
    assert facts["verdicts"]["paper"] == {"supported": 1, "refuted": 1, "undecided": 1, "not run": 0}
    assert facts["verdicts"]["ours"]["not run"] == 3
    assert set(facts["outputs"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert facts == test_claims(spec, store.root, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out/claims.csv").open()))
    assert [(row["claim"], row["source"]) for row in rows] == [
        (n, s) for n in names for s in ("ours", "paper")
    ]
    assert rows[3]["verdict"] == "supported" and float(rows[3]["effect"]) == pytest.approx(15.035)
    text = (tmp_path / "out/claims.md").read_text()
    html = (tmp_path / "out/claims.html").read_text()
    for part in (text, html):
        assert "the adapter is the best-performing PEFT method" in part and "undecided" in part
        assert "nan" not in part.lower().split() and "None" not in part
    assert html.count("<svg") == 2 and "critical difference" not in text
    again = msgspec.json.decode(msgspec.json.encode(spec), type=ClaimsSpec)
    assert again == spec  # a ticket carries it as JSON
