"""The judge stage: what a judge says about each answer of a set of predictions."""

from __future__ import annotations

import math
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.canonical import file_sha256
from peftbench.data.load import read_examples
from peftbench.errors import RunFailed, UserError
from peftbench.judging.base import Item, Reply, make_judge
from peftbench.judging.prompt import check_prompt, fill
from peftbench.judging.staging import Staging
from peftbench.metrics._judged import JUDGEMENTS_FILE, Judgement, write_judgements
from peftbench.metrics.scales import Scale, load_scale
from peftbench.training.progress import Progress

if TYPE_CHECKING:
    from peftbench.spec import Execution, JudgeSpec


def judge_predictions(
    spec: JudgeSpec,
    predictions_dir: Path,
    data_dir: Path,
    out_dir: Path,
    staging: Path,
    execution: Execution,
    model_dir: Path | None = None,
) -> dict[str, Any]:
    """Write ``judgements.parquet`` in the order of the predictions; return the facts of the record.

    Replies are kept in ``staging`` until the end. ``model_dir`` holds the model of a local judge.

    Raises ``RunFailed`` where more replies than tolerated cannot be read: the table is there, asking again would
    not change it. Raises ``UserError`` where more than tolerated do not come at all (the service is down, the
    key is wrong): nothing is recorded, and the next run asks for the missing ones only.
    """
    check_prompt(spec.prompt, "judge: prompt")
    scale = load_scale(spec.scale)
    examples = read_examples(data_dir, "test")
    types = dict(zip((e.id for e in examples), scale.types(examples), strict=True))
    answers = _read_answers(predictions_dir / "predictions.parquet", [example.id for example in examples])
    by_id = {example.id: example for example in examples}
    items = [
        Item(name, fill(spec.prompt, by_id[name], answer), by_id[name].question, answer, by_id[name].source)
        for name, answer in answers.items()
    ]
    allowed = math.floor(spec.tolerated * len(items) + 1e-9)
    store = Staging(staging, spec)
    found = {item.id: reply for item in items if (reply := store.known(item)) is not None}
    resumed = len(found)
    missing = [item for item in items if item.id not in found]
    if missing:
        judge = make_judge(spec, execution, model_dir)
        keeper = _Keeper(store, missing, len(items), resumed, allowed)
        found |= {reply.id: reply for reply in judge.judge(missing, keeper.keep)}
    rows = [_judgement(found[item.id], answers[item.id], types[item.id], scale) for item in items]
    target = out_dir / JUDGEMENTS_FILE
    write_judgements(rows, target)
    shutil.rmtree(staging, ignore_errors=True)
    failures = Counter(row.failed for row in rows if row.failed)
    failed = sum(failures.values())
    if failed > allowed:
        reason, times = failures.most_common(1)[0]
        raise RunFailed(
            f"{failed} of {len(rows)} judgements failed, {allowed} are tolerated; most often ({times}): {reason}"
        )
    return {
        "n": len(rows),
        "judged": len(rows) - failed,
        "not_judged": failed,
        "failures": dict(sorted(failures.items())),
        "tokens": {
            "prompt": sum(reply.prompt_tokens for reply in found.values()),
            "completion": sum(reply.completion_tokens for reply in found.values()),
        },
        "models": dict(sorted(Counter(reply.model for reply in found.values() if reply.model).items())),
        "resumed": resumed,
        "outputs": {JUDGEMENTS_FILE: file_sha256(target)},
    }


class _Keeper:
    """Stores replies as they arrive, and gives up once too many do not come."""

    def __init__(self, store: Staging, items: Sequence[Item], total: int, resumed: int, allowed: int) -> None:
        self.store = store
        self.items = {item.id: item for item in items}
        self.allowed, self.total = allowed, total
        self.failed, self.kept = 0, resumed
        self.progress = Progress("judge", total)
        self._lock = threading.Lock()

    def keep(self, reply: Reply) -> None:
        """Called from the judge's threads."""
        if reply.text is not None:
            self.store.keep(self.items[reply.id], reply)
        with self._lock:
            self.failed += reply.text is None
            self.kept += reply.text is not None
            self.progress.step(self.kept + self.failed, f"({self.failed} failed)" if self.failed else "")
            if self.failed > self.allowed:
                raise UserError(
                    f"judge: {self.failed} judgements of {self.total} got no reply, {self.allowed} are "
                    f"tolerated; the last one: {reply.failed}: {self.kept} replies are kept, run again for the rest"
                )


def _judgement(reply: Reply, answer: str, kind: str, scale: Scale) -> Judgement:
    rating, problem = None, reply.failed
    if reply.text is not None:
        rating, problem = scale.read(reply.text)
        if rating is None and reply.cut:
            problem += " (it was cut off at max_tokens)"
    return Judgement(
        id=reply.id,
        type=kind,
        prediction=answer,
        reply=reply.text,
        rating=rating,
        hallucinated=None if rating is None else scale.hallucinated(rating),
        failed=problem,
    )


def _read_answers(path: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Id -> answer in the order of the file, which must be about exactly the wanted ids."""
    from peftbench.arrow import pa, read_table

    try:
        table = read_table(path, columns=["id", "prediction"])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}): delete the folder and run again") from None
    ids: list[str] = table.column("id").to_pylist()
    if len(set(ids)) != len(ids) or set(ids) != set(wanted):
        raise UserError(f"{path}: its ids are not those of the test split: delete the folder and run again")
    if not ids:
        raise UserError(f"{path}: no predictions to judge")
    return dict(zip(ids, table.column("prediction").to_pylist(), strict=True))
