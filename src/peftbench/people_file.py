"""What people counted (``peftbench annotate count``) as a table takes it, read while planning."""

import json
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.views import People, PeopleCount


def read_people(path: Path, where: str) -> People:
    """The majority's counts in a ``hallucination.json``, and how far the annotators agree.

    ``UserError`` that begins with ``where`` (file and key) for a file that cannot be read or is none of these.
    """
    try:
        result = json.loads(path.read_bytes())
        people = [one for one in result["counts"] if one["people"] and one["epoch"] != "avg"]
        counts = [
            PeopleCount(
                method=one["method"],
                epoch=one["epoch"],
                answers=one["answers"],
                hallucinated=int(one["hallucinated"]),
                n=one["n"],
                low=one["low"],
                high=one["high"],
            )
            for one in people
        ]
        annotators = max(one["people"] for one in people)
        agreement = _agreement(result["agreement"])
    except OSError as error:
        raise UserError(
            f"{where}: {path}: {error.strerror}: 'peftbench annotate count' writes it, or leave the text empty"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"{where}: {path}: not what 'peftbench annotate count' writes (hallucination.json)"
        ) from None
    return People(annotators=annotators, agreement=agreement, counts=counts)


def _agreement(found: dict[str, Any]) -> str:
    if found["kappa"] is None:
        return str(found["problem"])
    text = f"{found['statistic']} {found['kappa']:.2f}"
    if found["interval"]:
        low, high = found["interval"]
        text += f" [{low:.2f}, {high:.2f}]"
    return f"{text} over {found['answers']} answers"
