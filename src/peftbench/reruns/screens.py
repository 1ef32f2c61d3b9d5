"""The answers of ``explain`` as a screen of text."""

import textwrap
from collections.abc import Iterator
from typing import Any

from peftbench.blessings import CODE_AS_RUN
from peftbench.reruns.differences import shown, title

WIDTH = 110
LISTED = 12
"""Lines of one kind that are shown before the rest is counted."""


def screen(answer: dict[str, Any]) -> str:
    """The text of an answer."""
    lines = list(_study(answer) if "study" in answer else _job(answer))
    lines += [f"warning: {line}" for line in answer["broken"]]
    return "\n".join(lines)


def _study(answer: dict[str, Any]) -> Iterator[str]:
    runs, there = answer["runs"], answer["there"]
    yield f"study {answer['study']}: {runs} runs, {there} there, {runs - there} not"
    if answer["would_run"]:
        counts = ", ".join(f"{count} {stage}" for stage, count in answer["would_run"].items())
        yield f"would run: {counts}"
        yield from _because(answer, "because")
        if answer["never_made"]:
            yield from _wrapped("", f"never made: {_few(answer['never_made'])}", indent=10)
    for number, line in enumerate(answer["failed"][:LISTED]):
        yield from _wrapped(f"{'' if number else 'failed':10}", line, indent=12)
    yield from _rest(answer["failed"])
    for view in answer["views"]:
        text = "; ".join(line["text"] for line in view["because"])
        state = "there" if view["there"] else f"would be made: {text or 'not made yet'}"
        yield from _wrapped(f"{view['stage']:10}", state, indent=10)


def _job(answer: dict[str, Any]) -> Iterator[str]:
    state = "there" if answer["there"] else "not there: it would run"
    if not answer["planned"]:
        state += ", asked for by no present study"
    if answer["failed"]:
        state += ", as a failed run" if answer["there"] else ": it failed when last tried"
    yield f"{title(answer['stage'], answer['label'])}  [{answer['rule']} {answer['digest']}]: {state}"
    if answer["failed"]:
        yield from _wrapped("failed    ", answer["failed"], indent=10)
    if answer["there"]:
        yield from _made(answer)
    elif answer["nearest"]:
        near = answer["nearest"]
        what = (
            "" if answer["same_label"] else f"another run, {near['label']}; of this one nothing is stored: "
        )
        yield f"nearest   {what}{near['digest']}, made {near['started'] or '?'} on {near['host'] or '?'}"
        yield from _because(answer, "differs")
    else:
        yield "nearest   nothing of this stage is stored: it was never made"
    if answer["there"] and not answer["planned"] and answer["nearest"]:
        yield f"planned   instead: {answer['nearest']['digest']} {answer['nearest']['label']}"
        yield from _because(answer, "differs")
    for blessing in answer.get("blessed") or []:
        job, modules = blessing["job"], ", ".join(blessing["modules"])
        if blessing["date"]:
            text = (
                f"{job}: counts as made by the code on disk by the blessing of {blessing['date']}: {modules}"
            )
            yield from _wrapped("blessed   ", text, indent=10)
        else:
            yield f"warning: {job}: made by other code under a blessing that no longer stands: {modules}"
    if not answer["there"]:
        yield from _above(answer["inputs"], "needs")


def _made(answer: dict[str, Any]) -> Iterator[str]:
    made = answer["made"]
    if answer["folder"]:
        yield f"folder    {answer['folder']}"
    device = made["device"] if made["device"] != "cpu" else f"cpu ({made['cpu']})"
    yield f"made      {made['started']} on {made['host']}, {device}"
    yield (
        f"cost      {_seconds(made['wall_seconds'])} wall, {_seconds(made['cpu_seconds'])} CPU, "
        f"{_seconds(made['gpu_seconds'])} GPU; peak {size(made['peak_memory'])} memory, "
        f"{size(made['peak_gpu_memory'])} GPU memory"
    )
    for number, (job, settings) in enumerate(answer["settings"].items()):
        items = "  ".join(f"{name}={shown(value)}" for name, value in settings.items())
        yield from _wrapped("settings  ", items if not number else f"({job})  {items}", indent=10)
    code = answer["code"]
    packages = " ".join(f"{name} {version}" for name, version in code.get("packages", {}).items())
    modules = code.get("modules", {})
    names = ", ".join(modules)
    yield from _wrapped("code      ", f"{len(modules)} modules: {names}", indent=10)
    if packages:
        yield f"packages  {packages}"
    ran = answer[CODE_AS_RUN]
    if ran:
        changed = [f"{name} {hash_}" for name, hash_ in ran["modules"].items() if modules.get(name) != hash_]
        gone = [f"{name} gone" for name in modules if name not in ran["modules"]]
        yield from _wrapped(
            "as run    ", "by newer code that was blessed: " + ", ".join(changed + gone), indent=10
        )
    if answer["from"]:
        yield from _above(answer["from"], "from")
    else:
        for number, line in enumerate(answer["inputs"]):
            state = "" if line["there"] else " (no longer there)"
            yield f"{'' if number else 'from':10}{line['name']}: {line['label'] or '?'}  {line['digest']}{state}"


def _because(answer: dict[str, Any], word: str) -> Iterator[str]:
    for number, line in enumerate(answer["because"][:LISTED]):
        yield from _wrapped(
            f"{'' if number else word:10}", f"{line['text']}  [{_few(line['jobs'])}]", indent=12
        )
    yield from _rest(answer["because"])


def _above(jobs: list[dict[str, Any]], word: str) -> Iterator[str]:
    for number, job in enumerate(jobs):
        state = (
            f"{job['started'] or '?'}, {_seconds(job['wall_seconds'])}" if job["there"] else "would run first"
        )
        yield f"{'' if number else word:10}{title(job['stage'], job['label'])}  {job['digest']}  {state}"


def _rest(lines: list[Any]) -> Iterator[str]:
    if len(lines) > LISTED:
        yield f"  and {len(lines) - LISTED} more (--json has all)"


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _wrapped(start: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return "? s"
    return f"{value:.1f} s" if value < 600 else f"{value / 3600:.1f} h"


def size(value: Any) -> str:
    """Bytes in words."""
    if not isinstance(value, int | float):
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
