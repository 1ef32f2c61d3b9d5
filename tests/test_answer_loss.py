"""The loss on reference answers: what training would measure, with the run's weights and without them."""

import msgspec
import polars as pl
import pytest

from peftbench.config import reads_losses
from peftbench.errors import UserError
from peftbench.evaluation.generate import generate_predictions
from peftbench.evaluation.score import score_predictions
from peftbench.metrics import answer_loss
from peftbench.spec import Decoding, ScoreSpec
from tiny_llava import CPU, predict_spec, train_spec, world


def losses(spec, run):
    out = world().out()
    here = world()
    facts = generate_predictions(spec, here.base, run, here.data, here.images, out, CPU)
    return out, facts, pl.read_parquet(out / "losses.parquet")


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "pissa"])
def test_it_is_the_loss_that_training_measures(method):
    settings = {"lora": {"rank": 4, "dropout": 0.0}, "prompt_tuning": {"tokens": 4}, "pissa": {"rank": 4}}
    spec = train_spec(method, settings=settings[method], eval_loss=True)
    run, facts = world().train(spec)
    _, made, table = losses(predict_spec(spec, what="losses", merge="never"), run)
    mean = table["loss"].sum() / table["tokens"].sum()
    assert mean == pytest.approx(facts["losses"]["eval"][-1], rel=1e-5)
    assert made["examples"] == table.height == 10 and made["outputs"].keys() == {"losses.parquet"}


def test_off_is_the_untuned_base_whatever_the_batches():
    spec = predict_spec(train_spec("base", connector="frozen", settings={}), what="losses")
    _, _, four = losses(spec, None)
    one = msgspec.structs.replace(spec, decoding=Decoding(max_new_tokens=1, batch_size=1))
    _, _, single = losses(one, None)
    assert four["loss"].to_list() == pytest.approx(single["loss"].to_list(), rel=1e-5)
    run, _ = world().train(train_spec("lora"))
    _, _, on = losses(predict_spec(train_spec("lora"), what="losses"), run)
    assert on["loss"].sum() < four["loss"].sum(), "tuned on the same colours"


def test_its_score_is_the_mean_over_examples_and_lower_is_better(tmp_path):
    spec = predict_spec(train_spec("base", connector="frozen", settings={}), what="losses")
    folder, _, table = losses(spec, None)
    facts = score_predictions(ScoreSpec(metric="answer_loss", settings={}), folder, world().data, tmp_path)
    assert facts["value"] == pytest.approx(100 * (table["loss"] / table["tokens"]).mean())
    assert facts["higher_is_better"] is False and facts["n"] == 10 and facts["stderr"] > 0
    assert facts["extra"]["per_token"] == pytest.approx(100 * table["loss"].sum() / table["tokens"].sum())
    assert reads_losses("answer_loss") and not reads_losses("vqa_score")
    (folder / "losses.parquet").unlink()
    with pytest.raises(UserError, match=r"losses.parquet: cannot be read"):
        score_predictions(ScoreSpec(metric="answer_loss", settings={}), folder, world().data, tmp_path)


def test_text_has_no_loss():
    with pytest.raises(UserError, match="reads the losses of a model, not its answers"):
        answer_loss.score(["red"], [], {})
