"""A judge behind a chat-completions address, as vLLM, llama.cpp, Ollama and the commercial services have it."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.judging.base import Item, Keep, Reply
from peftbench.judging.http import Client, NoReply, Stopped, check_address, read_key, travels_open

if TYPE_CHECKING:
    from peftbench.spec import Execution, JudgeSpec

OURS = ("model", "messages", "max_tokens", "temperature", "stream", "n")
"""Fields of a request that ``parameters`` cannot set."""
GRACE = 10.0
"""Seconds that requests under way get when the judging is interrupted: their replies are paid for."""


def make(spec: JudgeSpec, execution: Execution, model_dir: Path | None) -> EndpointJudge:
    """The judge of a spec; ``UserError`` where it cannot be asked."""
    check(spec)
    if model_dir is not None:
        raise UserError("judge: a judge of kind endpoint takes no model folder: use kind: local")
    key = read_key(execution.judge_key_variable)
    if key and travels_open(spec.base_url):
        print(f"warning: judge: {spec.base_url}: the key travels unencrypted: use https", file=sys.stderr)
    client = Client(check_address(spec.base_url), key, execution.judge_timeout, execution.judge_attempts)
    return EndpointJudge(spec, client, execution.judge_concurrency)


def check(spec: JudgeSpec) -> None:
    """``UserError`` where a spec lacks what a request needs; sends nothing."""
    check_address(spec.base_url)
    if not spec.model:
        raise UserError("judge: model is missing: the name under which base_url serves the judge")
    for name in OURS:
        if name in spec.parameters:
            raise UserError(f"judge: parameters.{name}: this field of the request has a setting of its own")


class EndpointJudge:
    """Sends each item as one user message; a few at a time."""

    def __init__(self, spec: JudgeSpec, client: Client, concurrency: int) -> None:
        self.spec = spec
        self.client = client
        self.concurrency = concurrency

    def judge(self, items: Sequence[Item], keep: Keep) -> list[Reply]:
        """See ``peftbench.judging.base.Judge``."""
        waiting: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
        for entry in enumerate(items):
            waiting.put(entry)
        replies: dict[int, Reply] = {}
        errors: list[BaseException] = []
        done = threading.Event()
        # Events, not Thread.join: an interrupted join takes a running thread for a finished one (bpo-45274).
        left = [threading.Event() for _ in range(min(self.concurrency, len(items)))]

        def work(leaving: threading.Event) -> None:
            try:
                while not done.is_set():
                    place, item = waiting.get_nowait()
                    replies[place] = reply = self._ask(item)
                    keep(reply)
            except (queue.Empty, Stopped):
                pass
            except BaseException as error:
                errors.append(error)
                done.set()
                self.client.stop()
            finally:
                leaving.set()

        # Daemons: a request that hangs shall not keep an interrupted job alive.
        for i, leaving in enumerate(left):
            threading.Thread(target=work, args=(leaving,), daemon=True, name=f"judge {i}").start()
        try:
            for leaving in left:
                while not leaving.wait(0.2):  # a wait without end would not see a signal
                    pass
        finally:
            done.set()
            self.client.stop()
            end = time.monotonic() + GRACE
            for leaving in left:
                leaving.wait(max(0.0, end - time.monotonic()))
        if errors:
            raise errors[0]
        return [replies[place] for place in range(len(items))]

    def body(self, item: Item) -> dict[str, Any]:
        """The request for an item."""
        spec = self.spec
        body: dict[str, Any] = {
            "model": spec.model,
            "messages": [{"role": "user", "content": item.prompt}],
            **spec.parameters,
        }
        if "max_completion_tokens" not in spec.parameters:  # some services know one name only
            body["max_tokens"] = spec.max_tokens
        if spec.temperature is not None:
            body["temperature"] = spec.temperature
        return body

    def _ask(self, item: Item) -> Reply:
        try:
            return self.client.post(self.body(item), lambda answer: read_completion(item.id, answer))
        except NoReply as failure:
            return Reply(id=item.id, text=None, failed=str(failure))


def read_completion(name: str, answer: Any) -> Reply:
    """A reply from a service's JSON; ``ValueError`` where it is not what such services send."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        text = content or message.get("refusal") or ""
        usage = answer.get("usage") or {}
        tokens = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
        if not isinstance(text, str):
            raise TypeError
        return Reply(
            id=name,
            text=text,
            cut=choice.get("finish_reason") == "length",
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            model=str(answer.get("model") or ""),
        )
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("not a chat completion") from None
