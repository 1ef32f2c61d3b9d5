"""From an example to text: the prompt of the data set, then the chat template of the model.

Templates are Jinja files of our own (``templates/<name>.jinja``): those of the hub mostly lack the system
sentence or the end token that the models were trained with. They see ``messages`` (each with ``role``,
``text`` and ``image``), ``image_token``, ``bos_token``, ``eos_token`` and ``add_generation_prompt``, and must end
with the generation prompt. The tokenizer adds its own start token, if it has that habit.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import jinja2

    from peftbench.data.example import Example
    from peftbench.spec import Prompt

TEMPLATES = Path(__file__).parent / "templates"


def template_path(name: str) -> Path:
    """The file of a chat template; ``UserError`` with the names that exist."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        known = [p.stem for p in TEMPLATES.glob("*.jinja")]
        raise UserError(
            f"model file: template: there is no chat template {name!r}{did_you_mean(name, known)}"
        )
    return path


@lru_cache
def _compiled(name: str) -> jinja2.Template:
    """The compiled template; sandboxed, and an unknown variable is an error rather than an empty string."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    return environment.from_string(template_path(name).read_text(encoding="utf-8"))


def user_text(prompt: Prompt, example: Example) -> str:
    """The user's turn: one of the data set's templates, filled in.

    The template is drawn by the image (without one, by the example's id), so that all examples of a picture, such as
    its five captions, ask in the same words.

    ``{choices}`` is "a, b, c" and ``{lettered}`` is "A. a B. b C. c" (Table 10 and Fig. 18 of the paper).
    """
    draw = int.from_bytes(hashlib.sha256((example.image or example.id).encode()).digest()[:8], "big")
    template = prompt.templates[draw % len(prompt.templates)]
    lettered = " ".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(example.choices))
    try:
        return template.format(
            question=example.question, choices=", ".join(example.choices), lettered=lettered
        )
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data set file: prompt: cannot fill {template!r} ({error}): "
            "the fields are {question}, {choices} and {lettered}"
        ) from None


def render_chat(
    name: str,
    text: str,
    image: bool,
    answer: str | None,
    image_token: str,
    eos_token: str,
    bos_token: str = "",
) -> str:
    """One exchange as text: up to the generation prompt where ``answer`` is None, else to the end token.

    The image placeholder stands once; it is expanded later.
    """
    if image_token in text:
        raise UserError(f"the question {text!r} contains the image placeholder {image_token}: remove it")
    messages = [{"role": "user", "text": text, "image": image}]
    if answer is not None:
        messages.append({"role": "assistant", "text": answer, "image": False})
    return _compiled(name).render(
        messages=messages,
        image_token=image_token,
        bos_token=bos_token,
        eos_token=eos_token,
        add_generation_prompt=answer is None,
    )
