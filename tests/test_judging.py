import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from judge_case import EXECUTION, SCORE, VARIABLE, Case
from loopback_judge import KEY, LoopbackJudge, rating_of
from peftbench.errors import RunFailed, UserError
from peftbench.evaluation.score import score_predictions
from peftbench.judging import endpoint, http
from peftbench.metrics.scales.mmhal import TYPES
from peftbench.spec import Execution


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(http, "FIRST_WAIT", 0.02)


@pytest.fixture
def server():
    with LoopbackJudge() as running:
        yield running


@pytest.fixture
def case(tmp_path: Path, server: LoopbackJudge) -> Case:
    return Case(tmp_path, server)


def test_all_judged_and_scored(case: Case, server: LoopbackJudge) -> None:
    facts = case.judge(parameters={"seed": 7}, max_tokens=99)
    assert (facts["n"], facts["judged"], facts["not_judged"], facts["failures"]) == (8, 8, 0, {})
    assert facts["tokens"] == {"prompt": 800, "completion": 56}
    assert facts["models"] == {"judge-1-2026-01-01": 8}
    rows = case.rows()
    assert [row["id"] for row in rows] == [f"q{i}" for i in reversed(range(8))], "the predictions' order"
    for row in rows:
        assert row["rating"] == rating_of(row["id"])
        assert row["hallucinated"] == (row["rating"] < 3)
        assert row["type"] == TYPES[int(row["id"][1:]) % 8]
        assert row["prediction"] == f"answer to {row['id']}"
    body = server.bodies[0]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "judge-1",
        "temperature": 0.0,
        "max_tokens": 99,
        "seed": 7,
    }
    assert set(server.paths) == {"/v1/chat/completions"}
    scored = case.score()
    ratings = [rating_of(f"q{i}") for i in range(8)]
    assert scored["value"] == pytest.approx(sum(ratings) / 8)
    assert scored["extra"]["hallucination_rate"] == pytest.approx(100 * sum(r < 3 for r in ratings) / 8)
    assert list(scored["extra"]["by_type"]) == list(TYPES)
    assert (scored["n"], scored["extra"]["judged"], scored["extra"]["failed"]) == (8, 8, 0)
    assert scored["extra"]["official"]["value"] == pytest.approx(sum(ratings) / 8)
    assert not case.staging.exists()


@pytest.mark.parametrize(
    "troubles",
    [["429"], ["500", "503"], ["cut"], ["half", "cut"], ["html"], ["odd"], ["hang up"], ["slow"], ["drip"]],
    ids=" ".join,
)
def test_trouble_that_passes_is_survived(case: Case, server: LoopbackJudge, troubles: list[str]) -> None:
    server.plan["q3"] = list(troubles)
    start = time.monotonic()
    facts = case.judge(tolerated=0.0)
    assert facts["not_judged"] == 0
    assert [action for item, action in server.requests if item == "q3"] == [*troubles, "ok"]
    assert next(row for row in case.rows() if row["id"] == "q3")["rating"] == rating_of("q3")
    if troubles == ["429"]:
        assert time.monotonic() - start >= 1.0, "as long as the service asked for"


@pytest.mark.parametrize("way", ["text", "parts"])
def test_good_replies_in_other_clothes(case: Case, server: LoopbackJudge, way: str) -> None:
    server.plan["q2"] = [way]
    assert case.judge(tolerated=0.0)["not_judged"] == 0
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("two", "several ratings in the reply: 2, 5"),
        ("none", "no rating in the reply"),
        ("empty", "empty reply"),
        ("long", "no rating in the reply (it was cut off at max_tokens)"),
        ("500", r"HTTP 500: failed for Bearer [key] after 3 attempts"),
        ("html", "broken reply (Expecting value: line 1 column 1 (char 0)) after 3 attempts"),
        ("odd", "broken reply (not a chat completion) after 3 attempts"),
        ("cut", "reply cut off after 3 attempts"),
        ("slow", "no reply within 0.8 s after 3 attempts"),
        ("drip", "no reply within 0.8 s after 3 attempts"),
        ("400", "refused (HTTP 400: failed for Bearer [key])"),
        ("429 for a day", "HTTP 429: daily limit; the service asks for a wait of 86400 s"),
    ],
)
def test_a_failure_is_counted_with_its_reason_and_never_scored(
    case: Case, server: LoopbackJudge, action: str, reason: str
) -> None:
    server.plan["q5"] = [action] * 9
    facts = case.judge(tolerated=0.2)
    assert (facts["judged"], facts["not_judged"], facts["failures"]) == (7, 1, {reason: 1})
    row = next(row for row in case.rows() if row["id"] == "q5")
    assert (row["rating"], row["hallucinated"], row["failed"]) == (None, None, reason)
    scored = case.score()
    good = [rating_of(f"q{i}") for i in range(8) if i != 5]
    assert scored["value"] == pytest.approx(sum(good) / 7)
    assert scored["n"] == 7
    assert scored["extra"]["failures"] == {reason: 1}
    assert TYPES[5] not in scored["extra"]["by_type"], "its type has no judged question here"
    table = pq.read_table(case.folder / "scores/examples.parquet").to_pylist()
    assert next(row for row in table if row["id"] == "q5")["score"] is None


def test_too_many_unreadable_replies_fail_the_run_with_the_table_kept(
    case: Case, server: LoopbackJudge
) -> None:
    server.plan |= {"q1": ["two"], "q2": ["none"], "q6": ["none"]}
    with pytest.raises(RunFailed, match=r"3 of 8 judgements failed, 1 are tolerated; most often \(2\): no r"):
        case.judge(tolerated=0.2)
    assert sum(bool(row["failed"]) for row in case.rows()) == 3


def test_a_service_that_is_down_records_nothing_and_stops_early(case: Case, server: LoopbackJudge) -> None:
    for i in range(8):
        server.plan[f"q{i}"] = ["503"] * 99
    with pytest.raises(UserError, match="got no reply, 0 are tolerated; the last one: HTTP 503") as caught:
        case.judge(msgspec.structs.replace(EXECUTION, judge_concurrency=1))
    assert not isinstance(caught.value, RunFailed)
    assert len(server.requests) == 3, "one item's attempts"
    assert not list(case.out.iterdir())
    server.plan.clear()
    assert case.judge()["judged"] == 8


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"connection failed \(Connection refused\) after 3 attempts"):
        Case(tmp_path, None).judge()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("404", r"no such address or model \(HTTP 404: failed for Bearer \[key\]\)"),
        ("redirect", "sends to another address"),
        ("quota", "the account's quota is used up"),
    ],
)
def test_hopeless_answers_end_it_at_once(
    case: Case, server: LoopbackJudge, action: str, message: str
) -> None:
    server.plan["q7"] = [action]
    with pytest.raises(UserError, match=message):
        case.judge(msgspec.structs.replace(EXECUTION, judge_concurrency=1), tolerated=1.0)
    assert len(server.requests) == 1
    assert not any("elsewhere" in path for path in server.paths), "the key went nowhere else"


def test_wrong_key(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-another-key-of-somebody")
    with pytest.raises(UserError, match="the key is missing or wrong") as caught:
        case.judge()
    assert "sk-" not in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match="environment variable of that name is not set") as caught:
        case.judge()
    assert VARIABLE not in str(caught.value), "it may be a key by mistake"


def test_a_key_over_plain_http_is_warned_about(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    for address, warned in [
        ("http://judge.example/v1", True),
        ("https://judge.example/v1", False),
        (case.server.url if case.server else "", False),
    ]:
        endpoint.make(case.spec(base_url=address), EXECUTION, None)
        assert ("travels unencrypted" in capsys.readouterr().err) == warned


def test_no_key_needed(tmp_path: Path) -> None:
    with LoopbackJudge(key="") as server:
        assert Case(tmp_path, server).judge(Execution())["judged"] == 8


def test_a_key_in_place_of_its_name_is_refused_unseen() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"judge_key_variable": KEY}, Execution)
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_file_and_no_message(
    case: Case, server: LoopbackJudge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan |= {"q0": ["echo key"], "q1": ["500"] * 9, "q2": ["401"], "q3": ["400"]}
    with pytest.raises(UserError) as caught:
        case.judge(tolerated=0.5)
    texts = [str(caught.value)]
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(http, "FIRST_WAIT", 0.02)
    server.plan |= {"q1": ["500"] * 9, "q3": ["400"]}
    facts = case.judge(tolerated=0.5)
    texts += [json.dumps(facts), *capfd.readouterr()]
    for path in case.folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    for row in case.rows():
        texts.append(json.dumps(row))
    assert KEY not in " ".join(texts)
    assert "[key]" in " ".join(texts), "what was hidden was there"


def test_concurrency_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    tables = []
    for workers in (1, 3):
        with LoopbackJudge() as server:
            server.delay = 0.05
            (tmp_path / str(workers)).mkdir()
            case = Case(tmp_path / str(workers), server, 12)
            execution = msgspec.structs.replace(EXECUTION, judge_concurrency=workers)
            case.judge(execution)
            tables.append((case.out / "judgements.parquet").read_bytes())
            assert server.most_open == workers
    assert tables[0] == tables[1]


def test_everyone_waits_when_the_service_says_so(tmp_path: Path, server: LoopbackJudge) -> None:
    server.plan["q7"] = ["429"]
    server.delay = 0.02
    Case(tmp_path, server).judge(msgspec.structs.replace(EXECUTION, judge_concurrency=2))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) > 0.8


CHILD = """
import sys
from pathlib import Path
import msgspec
from peftbench.judging.stage import judge_predictions
from peftbench.spec import Execution, JudgeSpec
folder = Path(sys.argv[1])
judge_predictions(
    msgspec.json.decode((folder / "spec.json").read_bytes(), type=JudgeSpec),
    folder / "predictions", folder / "data", folder / "judgements", folder / "staging",
    Execution(judge_key_variable=sys.argv[2], judge_concurrency=2),
)
"""


def test_a_killed_job_pays_only_for_what_is_missing(tmp_path: Path, server: LoopbackJudge) -> None:
    case = Case(tmp_path, server, 16)
    server.delay = 0.15
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(case.spec()))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), VARIABLE])
    replies = case.staging / "replies.jsonl"
    deadline = time.monotonic() + 60
    while not (replies.exists() and replies.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(0.4)  # requests under way end
    kept = replies.read_bytes()
    replies.write_bytes(kept + kept.splitlines()[0][:40])  # a line that the kill cut off
    assert not list(case.out.glob("judgements*"))
    n = kept.count(b"\n")
    server.requests.clear()
    server.delay = 0.0
    facts = case.judge()
    assert facts["resumed"] == n
    assert len(server.answered) == 16 - n
    assert facts["tokens"] == {"prompt": 1600, "completion": 112}, "those paid for before count too"
    assert [row["rating"] for row in case.rows()] == [rating_of(f"q{i}") for i in reversed(range(16))]
    case.out.joinpath("judgements.parquet").rename(tmp_path / "resumed")
    case.judge()
    assert (tmp_path / "resumed").read_bytes() == (case.out / "judgements.parquet").read_bytes()


def test_an_interrupted_job_keeps_what_is_on_its_way(tmp_path: Path, server: LoopbackJudge) -> None:
    case = Case(tmp_path, server, 16)
    server.delay = 0.5
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(case.spec()))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), VARIABLE], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(server.requests) < 4:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait(timeout=30) != 0
    kept = (case.staging / "replies.jsonl").read_bytes().count(b"\n")
    assert kept == len(server.answered) and 3 <= kept < 16, (
        "every reply that was sent is kept, and no more are asked for"
    )


def test_kept_replies_of_another_question_are_not_taken(case: Case, server: LoopbackJudge) -> None:
    server.plan["q0"] = ["404"]
    execution = msgspec.structs.replace(EXECUTION, judge_concurrency=1)
    with pytest.raises(UserError):
        case.judge(execution)  # q0 comes last
    assert (case.staging / "replies.jsonl").read_bytes().count(b"\n") == 7
    server.requests.clear()
    assert case.judge(execution, model="judge-2")["resumed"] == 0
    assert len(server.answered) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "must be an http or https address"),
        ({"base_url": "https://me:secret@host/v1"}, "must hold no name, password"),
        ({"base_url": "https://host/v1?key=secret"}, "must hold no name, password"),
        ({"base_url": "http://host:port/v1"}, "its port is no number"),
        ({"model": ""}, "model is missing"),
        ({"parameters": {"messages": []}}, "parameters.messages: this field"),
        ({"scale": "mmhall"}, "unknown scale of a judge 'mmhall'; did you mean 'mmhal'"),
        ({"prompt": "{question}"}, "the place {model_answer} is missing"),
        ({"kind": "local"}, "base_url belongs to a judge of kind endpoint"),
    ],
)
def test_wrong_specs(case: Case, server: LoopbackJudge, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        case.judge(**changes)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not server.requests


def test_score_needs_judgements(case: Case) -> None:
    with pytest.raises(UserError, match="no judgements: this metric scores what a judge says"):
        score_predictions(SCORE, case.predictions, case.data, case.folder / "scores")


def test_scoring_nothing_judged_fails_the_run(case: Case, server: LoopbackJudge) -> None:
    for i in range(8):
        server.plan[f"q{i}"] = ["none"]
    case.judge(tolerated=1.0)
    with pytest.raises(RunFailed, match="none of the 8 judgements succeeded"):
        case.score()


def test_requests_for_models_with_other_names(case: Case) -> None:
    spec = case.spec(temperature=None, parameters={"max_completion_tokens": 50})
    judge = endpoint.make(spec, EXECUTION, None)
    body = judge.body(endpoint.Item("a", "b"))
    assert set(body) == {"model", "messages", "max_completion_tokens"}
