"""Inputs of the metrics' benchmark, made up in the style, the proportions and the formats of the real files."""

from __future__ import annotations

import json
import random
from pathlib import Path

NOUNS = """
dog cat man woman boy girl tree car bus train plane table chair phone laptop pizza cake sandwich apple
banana orange bottle cup glass bowl fork knife spoon bench street sign light clock tower beach ocean snow
mountain surfboard kite frisbee ball bat glove racket court field grass fence wall door window house bed
pillow couch keyboard mouse book vase flower scissors sink toilet mirror oven stove umbrella handbag tie
suitcase hat shirt jacket horse sheep cow
"""
COLOURS = "red blue green white black brown yellow orange gray striped wooden small big old"
VERBS = "standing sitting walking running eating playing riding holding looking jumping talking climbing"
PLACES = "in on near with under behind across beside"


def make_vqa(folder: Path, questions: int) -> None:
    """Annotations, questions and results in the official formats, with a long tail of phrases."""
    rng = random.Random(0)
    nouns, colours, verbs = NOUNS.split(), COLOURS.split(), VERBS.split()

    def phrase() -> str:
        kind = rng.random()
        if kind < 0.5:
            return f"{rng.choice(colours)} {rng.choice(nouns)}"
        if kind < 0.7:
            return f"{rng.choice(nouns)} and {rng.choice(nouns)}"
        if kind < 0.85:
            return f"{rng.choice(verbs)} on {rng.choice(['a ', 'the ', ''])}{rng.choice(nouns)}"
        if kind < 0.95:
            joint = rng.choice(["'s", "-", "/", ", "])
            return f"{rng.choice(nouns)}{joint}{rng.choice(nouns)}{rng.choice(['', '.', ' '])}"
        return f"{rng.choice(nouns)} {rng.choice(verbs)} {rng.randint(0, 999)}"

    annotations, asked, results = [], [], []
    for number in range(questions):
        image = 1000 + number // 5
        name = image * 1000 + number % 5
        kind = rng.random()
        if kind < 0.38:
            kind_name, likely, doubt = "yes/no", rng.choice(["yes", "no"]), rng.choice([0.02, 0.1, 0.3])
            answers = [
                likely if rng.random() > doubt else "no" if likely == "yes" else "yes" for _ in range(10)
            ]
        elif kind < 0.5:
            kind_name, count = "number", rng.randint(0, 9)
            words = ["zero", "one", "two", "three"]
            answers = [
                str(count if rng.random() < 0.7 else rng.randint(0, 12))
                if rng.random() < 0.95
                else words[count % 4]
                for _ in range(10)
            ]
        else:
            kind_name, likely = "other", rng.choice(nouns if rng.random() < 0.7 else colours)
            doubt = rng.choice([0.1, 0.4, 0.8])
            answers = [
                likely if rng.random() > doubt else rng.choice(nouns) if rng.random() < 0.6 else phrase()
                for _ in range(10)
            ]
        annotations.append(
            {
                "question_type": rng.choice(
                    ["what is", "is the", "how many", "what color is the", "none of the above"]
                ),
                "multiple_choice_answer": max(set(answers), key=answers.count),
                "answers": [
                    {
                        "answer": text,
                        "answer_confidence": rng.choice(["yes", "maybe", "no"]),
                        "answer_id": place + 1,
                    }
                    for place, text in enumerate(answers)
                ],
                "image_id": image,
                "answer_type": kind_name,
                "question_id": name,
            }
        )
        question = f"What is the {rng.choice(nouns)} near the {rng.choice(nouns)}?"
        asked.append({"image_id": image, "question": question, "question_id": name})
        draw = rng.random()
        guess = answers[0] if draw < 0.6 else rng.choice(nouns) if draw < 0.8 else phrase()
        if rng.random() < 0.1:
            guess = guess.capitalize() + rng.choice(["", ".", "!"])
        results.append({"question_id": name, "answer": guess})
    (folder / "annotations.json").write_text(
        json.dumps({"info": {}, "annotations": annotations, "data_type": "mscoco"})
    )
    (folder / "questions.json").write_text(json.dumps({"info": {}, "questions": asked}))
    (folder / "results.json").write_text(json.dumps(results))


def make_captions(folder: Path, images: int) -> None:
    """Five references and a candidate per image; three lines in a thousand need Java."""
    rng = random.Random(1)
    nouns, colours, verbs, places = NOUNS.split(), COLOURS.split(), VERBS.split(), PLACES.split()
    letters = "aeioubcdfghklmnprst"
    rare = ["".join(rng.choice(letters) for _ in range(rng.randint(4, 8))) for _ in range(15_000)]

    def caption() -> str:
        words = [rng.choice(["A", "Two", "The", "Three", "An"])]
        words += [rng.choice(colours)] * (rng.random() < 0.6) + [rng.choice(nouns), "is", rng.choice(verbs)]
        words += [rng.choice(places), rng.choice(["a", "the", "some"])]
        words += [rng.choice(colours)] * (rng.random() < 0.5)
        words += [rng.choice(nouns) if rng.random() < 0.8 else rng.choice(rare)]
        if rng.random() < 0.6:
            words += [rng.choice(["while", "and", "as a man's"]), rng.choice(verbs), rng.choice(places), "a"]
            words += [rng.choice(nouns)]
        text = " ".join(words)
        if rng.random() < 0.003:
            text += rng.choice(
                [" (5'6\")", " @ home", " at 5:30pm", " near no. 5 .", " with a 1 1/2 foot board"]
            )
        return text + rng.choice([" .", ".", ""])

    rows = [
        {"id": n, "captions": [caption() for _ in range(5)], "prediction": caption()} for n in range(images)
    ]
    (folder / "captions.json").write_text(json.dumps(rows))
