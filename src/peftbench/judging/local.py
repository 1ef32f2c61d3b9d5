"""A judge in a folder: any model that transformers loads, given text only, decoding greedily."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.judging.base import Item, Keep, Reply

if TYPE_CHECKING:
    from peftbench.spec import Execution, JudgeSpec


def make(spec: JudgeSpec, execution: Execution, model_dir: Path | None) -> LocalJudge:
    """The judge of a spec; ``UserError`` where its folder holds no model that can be loaded."""
    import torch

    from peftbench.models.load import load_base, pick_device

    for name in ("base_url", "model", "parameters"):
        if getattr(spec, name):
            raise UserError(f"judge: {name} belongs to a judge of kind endpoint: remove it")
    if model_dir is None:
        raise UserError("judge: a judge of kind local needs a model folder: give it as the input 'judge'")
    torch.set_num_threads(execution.threads)
    device = pick_device(execution.device)
    if spec.names is not None:
        base = load_base(model_dir, spec.precision, device, spec.names)
        return LocalJudge(
            base.model, base.tokenizer, _own_template(base, spec.names.template), spec, model_dir
        )
    model, tokenizer, parts = _load(model_dir, spec.precision)
    return LocalJudge(model.to(device), tokenizer, _hub_template(tokenizer, parts), spec, model_dir)


class LocalJudge:
    """One item at a time, so that a reply does not depend on its neighbours."""

    def __init__(
        self, model: Any, tokenizer: Any, render: Callable[[str], str], spec: JudgeSpec, folder: Path
    ) -> None:
        from transformers import GenerationConfig

        self.model, self.tokenizer, self.render, self.folder = model.eval(), tokenizer, render, folder
        self.max_tokens = spec.max_tokens
        own = model.generation_config.eos_token_id
        listed = [] if own is None else own if isinstance(own, list) else [own]
        if tokenizer.eos_token_id is not None:
            listed = [*listed, tokenizer.eos_token_id]
        if not listed:
            raise UserError(f"judge: {folder}: the tokenizer has no end token: set eos_token in its files")
        self.ends = {int(token) for token in listed}
        # Configurations of the hub bring temperatures and penalties.
        self.model.generation_config = GenerationConfig(
            max_new_tokens=spec.max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self.ends),
            pad_token_id=min(self.ends),
            use_cache=True,
        )
        config = model.config.get_text_config()
        self.longest: int | None = getattr(config, "max_position_embeddings", None)

    def judge(self, items: Sequence[Item], keep: Keep) -> list[Reply]:
        """See ``peftbench.judging.base.Judge``."""
        replies = []
        for item in items:
            reply = self._ask(item)
            keep(reply)
            replies.append(reply)
        return replies

    def _ask(self, item: Item) -> Reply:
        import torch

        text = self.render(item.prompt)
        ids = self.tokenizer(text, add_special_tokens=not self._starts(text), return_tensors="pt").input_ids
        n = int(ids.shape[1])
        if self.longest is not None and n + self.max_tokens > self.longest:
            raise UserError(
                f"judge: {self.folder}: item {item.id!r} needs {n} tokens and {self.max_tokens} for the reply, "
                f"the model takes {self.longest}: use a shorter prompt, fewer max_tokens or another judge"
            )
        ids = ids.to(next(self.model.parameters()).device)
        with torch.inference_mode():
            output = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        made = output[0, n:].tolist()
        stop = next((place for place, token in enumerate(made) if token in self.ends), None)
        kept = made if stop is None else made[:stop]
        return Reply(
            id=item.id,
            text=self.tokenizer.decode(kept, skip_special_tokens=True),
            cut=stop is None,
            prompt_tokens=n,
            completion_tokens=len(kept),
            model=str(getattr(self.model.config, "model_type", "")),
        )

    def _starts(self, text: str) -> bool:
        """Whether a template has written the start token already."""
        start = self.tokenizer.bos_token
        return bool(start) and text.startswith(start)


def _load(folder: Path, precision: str) -> tuple[Any, Any, bool]:
    """A model, its tokenizer, and whether its template wants a message in parts (as multimodal ones do)."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UserError(f"judge: {folder} holds no config.json: it must be a model's folder")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        parts = type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        kind = AutoModelForImageTextToText if parts else AutoModelForCausalLM
        model, info = kind.from_pretrained(
            folder,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"judge: cannot load {folder}: {' '.join(str(error).split())}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            raise UserError(f"judge: {folder} has {problem.replace('_', ' ')}: {sorted(info[problem])[:3]}")
    return model, tokenizer, parts


def _hub_template(tokenizer: Any, parts: bool) -> Callable[[str], str]:
    """The chat template that came with a tokenizer; without one, the bare text."""

    def render(text: str) -> str:
        content = [{"type": "text", "text": text}] if parts else text
        messages = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return render if tokenizer.chat_template else lambda text: text


def _own_template(base: Any, template: str) -> Callable[[str], str]:
    """One of our templates, as in training."""
    from peftbench.models.template import render_chat

    eos, bos = base.tokenizer.eos_token, base.tokenizer.bos_token or ""
    return lambda text: render_chat(template, text, False, None, base.image_token, eos, bos)
