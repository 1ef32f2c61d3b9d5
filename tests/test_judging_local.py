from pathlib import Path
from typing import Any

import msgspec
import pytest

from judge_case import PROMPT, Case, example
from peftbench.errors import UserError
from peftbench.judging.prompt import fill
from peftbench.judging.stage import judge_predictions
from peftbench.spec import Execution, JudgeSpec


def tiny_text_model(folder: Path, template: bool) -> None:
    """A random Llama with a byte-level vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny_llava import make_tokenizer

    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = True  # a setting of the hub's that must not matter
    model.generation_config.temperature = 5.0
    model.save_pretrained(folder)
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}USER: {{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
        )
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("template", [True, False])
def test_a_local_text_model_judges_greedily(tmp_path: Path, template: bool) -> None:
    model = tmp_path / "model"
    tiny_text_model(model, template)
    case = Case(tmp_path, None, 3)
    spec = JudgeSpec(kind="local", scale="mmhal", prompt=PROMPT, max_tokens=6, tolerated=1.0)
    arguments: Any = (spec, case.predictions, case.data, case.out, case.staging, Execution(device="cpu"))
    facts = judge_predictions(*arguments, model_dir=model)
    assert facts["n"] == 3
    assert facts["tokens"]["completion"] > 0
    assert facts["models"] == {"llama": 3}
    assert facts["not_judged"] == 3, "a random model gives no ratings: failures, never scores"
    first = case.rows()
    judge_predictions(*arguments, model_dir=model)
    assert case.rows() == first, "no sampling, whatever the folder says"
    assert all(row["reply"] for row in first)
    long = msgspec.structs.replace(spec, max_tokens=4000)
    with pytest.raises(UserError, match=r"'q2' needs .* tokens and 4000 for the reply, the model takes 4096"):
        judge_predictions(long, *arguments[1:], model_dir=model)
    with pytest.raises(UserError, match="needs a model folder"):
        judge_predictions(*arguments)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        judge_predictions(*arguments, model_dir=tmp_path)


def test_a_local_judge_that_rates(tmp_path: Path) -> None:
    """A model made to say one thing: the replies of a local judge reach the score."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tmp_path / "model"
    tiny_text_model(model, False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    wanted = [*tokenizer("Rating: 4", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    net = AutoModelForCausalLM.from_pretrained(model)
    sentence = fill(PROMPT, example(2), "answer to q2")
    start = tokenizer(sentence).input_ids
    # Teach it the one continuation: it is small, so a few steps do.
    ids = torch.tensor([start[-40:] + wanted])
    labels = torch.tensor([[-100] * 40 + wanted])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        net(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    net.save_pretrained(model)
    case = Case(tmp_path, None, 3)
    spec = JudgeSpec(
        kind="local",
        scale="mmhal",
        prompt="{question}{model_answer}" + PROMPT[-120:],
        max_tokens=12,
        tolerated=1.0,
    )
    facts = judge_predictions(
        spec, case.predictions, case.data, case.out, case.staging, Execution(device="cpu"), model_dir=model
    )
    assert facts["judged"] == 3, case.rows()
    assert case.score()["value"] == 4.0


def test_a_local_multimodal_model_of_ours(tmp_path: Path) -> None:
    import tiny_llava

    model = tmp_path / "model"
    tiny_llava.build(model)
    case = Case(tmp_path, None, 2)
    spec = JudgeSpec(
        kind="local",
        scale="mmhal",
        prompt="{question} {model_answer}",
        max_tokens=4,
        tolerated=1.0,
        names=tiny_llava.NAMES,
    )
    facts = judge_predictions(
        spec, case.predictions, case.data, case.out, case.staging, Execution(device="cpu"), model_dir=model
    )
    assert facts["n"] == 2
    assert facts["models"] == {"llava": 2}
    by_tokenizer = msgspec.structs.replace(spec, names=None)
    assert (
        judge_predictions(
            by_tokenizer,
            case.predictions,
            case.data,
            case.out,
            case.staging,
            Execution(device="cpu"),
            model_dir=model,
        )["n"]
        == 2
    )
