"""The public VQA evaluators, restated from their definitions: the yardstick of tests and benchmark.

None of these evaluators is on PyPI, so the yardstick is a plain restatement of what they do and in which
order, with the same cost: ``json.load`` of the annotation file and the question file, an index of
dictionaries, and for each question the 21 replacements, the regular expressions, a list of "other" answers
for each of its answers and the list of matching ones among these.

- ``evaluate_official``: VQAEval of GT-Vision-Lab/VQA, commit a013f00.
- ``evaluate_legacy``: its predecessor a4f1afd, the same as Qwen-VL's (aa00ed0) and LAVIS's ``vqa_eval.py``.
- ``evaluate_always``: OpenFlamingo's (655f693): official without the rule for unanimous answers.
- ``evaluate_m4c``: ``TextVQAAccuracyEvaluator`` of LLaVA's ``m4c_evaluator.py`` (c121f04).
- ``evaluate_evalai``: LLaVA's answer processor on the prediction (what it submits), then the official
  evaluator.

The "other" answers are those at another position. The official code compares dictionaries, which differ by
``answer_id``; where a data set has none (VizWiz), position is what it means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
COMMA_OFFICIAL = re.compile(r"(\d)(\,)(\d)")
COMMA_M4C = re.compile(r"(?<=\d)(\,)+(?=\d)")
MARKS = list(';/[]"{}()=+\\_-><@`,?!')
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = ["a", "an", "the"]
# "written form>replacement", the evaluators' table of contractions with its slips.
CONTRACTION_PAIRS = """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've
couldnt've>couldn't've didnt>didn't doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've
hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd hed've>he'd've he'dve>he'd've hes>he's howd>how'd
howll>how'll hows>how's Id've>I'd've I'dve>I'd've Im>I'm Ive>I've isnt>isn't itd>it'd itd've>it'd've
it'dve>it'd've itll>it'll let's>let's maam>ma'am mightnt>mightn't mightnt've>mightn't've
mightn'tve>mightn't've mightve>might've mustnt>mustn't mustve>must've neednt>needn't notve>not've
oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't
shed've>she'd've she'dve>she'd've she's>she's shouldve>should've shouldnt>shouldn't
shouldnt've>shouldn't've shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've
somebody'dve>somebody'd've somebodyll>somebody'll somebodys>somebody's someoned>someone'd
someoned've>someone'd've someone'dve>someone'd've someonell>someone'll someones>someone's
somethingd>something'd somethingd've>something'd've something'dve>something'd've somethingll>something'll
thats>that's thered>there'd thered've>there'd've there'dve>there'd've therere>there're theres>there's
theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've twas>'twas
wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're
whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd
whod've>who'd've who'dve>who'd've wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're
whys>why's wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've wouldn'tve>wouldn't've
yall>y'all yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've
y'all'dve>y'all'd've youd>you'd youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've
"""
CONTRACTIONS = dict(pair.split(">") for pair in CONTRACTION_PAIRS.split())


def strip_marks(text: str, comma: re.Pattern[str]) -> str:
    """Punctuation: each mark is deleted or becomes a space; which one is decided on the original text."""
    out = text
    for mark in MARKS:
        if (mark + " " in text or " " + mark in text) or re.search(comma, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return PERIOD.sub("", out, count=int(re.UNICODE))


def map_words(text: str) -> str:
    """Lower case, number words, articles, contractions."""
    words = []
    for word in text.lower().split():
        word = NUMBERS.get(word, word)
        if word not in ARTICLES:
            words.append(word)
    for index, word in enumerate(words):
        if word in CONTRACTIONS:
            words[index] = CONTRACTIONS[word]
    return " ".join(words)


def clean(text: str) -> str:
    """New lines and tabs."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai_processor(text: str) -> str:
    """LLaVA's answer processor."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return map_words(strip_marks(clean(text), COMMA_M4C))


def leave_one_out(answers: list[dict[str, Any]], prediction: str) -> float:
    """Mean over the annotators of min(1, matches among the others / 3)."""
    scores = []
    for datum in answers:
        others = [item for item in answers if item != datum]
        matching = [item for item in others if item["answer"] == prediction]
        scores.append(min(1, float(len(matching)) / 3))
    return float(sum(scores)) / len(scores)


def official(answers: list[str], prediction: str) -> float:
    """The current evaluator on one question."""
    truth = [{"answer": clean(a), "answer_id": i} for i, a in enumerate(answers)]
    prediction = clean(prediction)
    if len({datum["answer"] for datum in truth}) > 1:
        for datum in truth:
            datum["answer"] = map_words(strip_marks(datum["answer"], COMMA_OFFICIAL))
        prediction = map_words(strip_marks(prediction, COMMA_OFFICIAL))
    return leave_one_out(truth, prediction)


def always_normalise(answers: list[str], prediction: str) -> float:
    """Without the rule for unanimous answers."""
    truth = [
        {"answer": map_words(strip_marks(clean(a), COMMA_OFFICIAL)), "answer_id": i}
        for i, a in enumerate(answers)
    ]
    return leave_one_out(truth, map_words(strip_marks(clean(prediction), COMMA_OFFICIAL)))


def legacy2017(answers: list[str], prediction: str) -> float:
    """The evaluator of 2017: the prediction is always normalised, the answers only lose punctuation."""
    prediction = map_words(strip_marks(clean(prediction), COMMA_OFFICIAL))
    truth = [{"answer": a, "answer_id": i} for i, a in enumerate(answers)]
    if len(set(answers)) > 1:
        for datum in truth:
            datum["answer"] = strip_marks(datum["answer"], COMMA_OFFICIAL)
    return leave_one_out(truth, prediction)


def m4c(answers: list[str], prediction: str) -> float:
    """LLaVA's TextVQA evaluator: soft scores of all unique answers, then a look-up of the prediction."""
    prediction = evalai_processor(prediction)
    processed = [evalai_processor(a) for a in answers]
    assert len(processed) == 10
    truth = list(enumerate(processed))
    scores = {}
    for unique in set(processed):
        accs = []
        for datum in truth:
            others = [item for item in truth if item != datum]
            matching = [item for item in others if item[1] == unique]
            accs.append(min(1, float(len(matching)) / 3))
        scores[unique] = sum(accs) / len(accs)
    return scores.get(prediction, 0.0)


def evalai(answers: list[str], prediction: str) -> float:
    """What LLaVA submits, scored by the official evaluator."""
    return official(answers, evalai_processor(prediction))


VARIANTS: dict[str, Callable[[list[str], str], float]] = {
    "official": official,
    "evalai": evalai,
    "legacy2017": legacy2017,
    "always_normalise": always_normalise,
    "m4c": m4c,
}


def evaluate_files(annotations: Path, questions: Path, results: Path) -> tuple[float, dict[int, float]]:
    """The official evaluation of three files: accuracy overall and per question, both to two digits.

    Loading, indexing and the checks follow ``VQA`` and ``VQA.loadRes`` of the official repository.
    """
    with annotations.open() as handle:
        dataset = json.load(handle)
    with questions.open() as handle:
        asked = json.load(handle)
    by_image: dict[int, list[dict[str, Any]]] = {ann["image_id"]: [] for ann in dataset["annotations"]}
    truth: dict[int, Any] = {ann["question_id"]: [] for ann in dataset["annotations"]}
    asked_by_id: dict[int, Any] = {ann["question_id"]: [] for ann in dataset["annotations"]}
    for ann in dataset["annotations"]:
        by_image[ann["image_id"]] += [ann]
        truth[ann["question_id"]] = ann
    for question in asked["questions"]:
        asked_by_id[question["question_id"]] = question
    with questions.open() as handle:
        json.load(handle)  # loadRes reads the questions again
    with results.open() as handle:
        answered = json.load(handle)
    ids = [ann["question_id"] for ann in dataset["annotations"]]
    assert {row["question_id"] for row in answered} == set(ids)
    for row in answered:
        known = truth[row["question_id"]]
        row["image_id"] = known["image_id"]
        row["question_type"] = known["question_type"]
        row["answer_type"] = known["answer_type"]
    predicted = {row["question_id"]: row for row in answered}
    accuracies = []
    per_question = {}
    for number in ids:
        answers = truth[number]["answers"]
        for datum in answers:
            datum["answer"] = clean(datum["answer"])
        prediction = clean(predicted[number]["answer"])
        if len({datum["answer"] for datum in answers}) > 1:
            for datum in answers:
                datum["answer"] = map_words(strip_marks(datum["answer"], COMMA_OFFICIAL))
            prediction = map_words(strip_marks(prediction, COMMA_OFFICIAL))
        accuracy = leave_one_out(answers, prediction)
        accuracies.append(accuracy)
        per_question[number] = round(100 * accuracy, 2)
    return round(100 * float(sum(accuracies)) / len(accuracies), 2), per_question
