"""Secrets are planted where users keep them, and looked for in everything that a run writes or says."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_world import OWN, World, new_world
from loopback_hub import LoopbackHub
from loopback_judge import LoopbackJudge
from peftbench.addresses import is_secret, refuse_secrets, without_secrets
from peftbench.errors import UserError

TOKEN = "hf_PLANTEDtokenPLANTEDtoken"
KEY = "sk-PLANTEDkeyPLANTEDkey0000"
PROXY = "PLANTEDproxypassword"
SIGNATURE = "PLANTEDsignature"
SECRETS = (TOKEN, KEY, PROXY, SIGNATURE)
JUDGE_VARIABLE = "MY_JUDGE_KEY"


class Said:
    """All that was printed."""

    text = ""


@pytest.fixture
def planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, LoopbackHub, LoopbackJudge, Said]]:
    """A project whose data lie on a hub that wants a token, with a judge that wants a key."""
    from peftbench.judging import http
    from peftbench.retrieve import transfer

    monkeypatch.setattr(transfer, "POLICY", transfer.Policy(tries=2, first_tries=2, pause=0.01))
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)
    (tmp_path / "project").mkdir()
    world = new_world(tmp_path / "project")
    shutil.move(world.path("my_data"), tmp_path / "hub/datasets/me/own")
    with LoopbackHub(tmp_path / "hub") as hub, LoopbackJudge(KEY) as judge:
        source = OWN["source"] | {"from": {"own": {"hub": "me/own", "revision": "main"}}}  # type: ignore[operator]
        world.yaml("config/datasets/own.yaml", OWN | {"source": source})
        world.change(
            "config/config.yaml", "judge", {"base_url": judge.url, "model": "judge-1", "prompt_file": "p.txt"}
        )
        world.write("p.txt", "#q# {question} {human_answer} {model_answer}")
        world.change("config/config.yaml", "execution.judge_key_variable", JUDGE_VARIABLE)
        world.change("config/config.yaml", "execution.judge_attempts", 2)
        variables = hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN, JUDGE_VARIABLE: KEY}
        variables |= dict.fromkeys(
            ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), f"http://me:{PROXY}@127.0.0.1:9"
        )
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        _read_again(monkeypatch, variables)
        yield world, hub, judge, Said()


def _read_again(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """What huggingface_hub read when it was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", variables["HF_HUB_CACHE"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def step(
    world: World, said: Said, stage: str, study: str = "judged", label: str = "", status: int = 0
) -> str:
    done = world.job(stage, study, label, log=f"results/logs/{stage}.log")
    said.text += done.out + done.err
    assert done.status == status, done.err
    return done.err


def search(world: World, said: Said) -> None:
    """No secret in anything that was written or said, whatever it is called."""
    read = 0
    for folder, _, names in os.walk(world.root.parent):
        if Path(folder).is_relative_to(world.root.parent / "hub"):
            continue
        for name in names:
            path = Path(folder, name)
            assert not any(secret in str(path) for secret in SECRETS)
            if path.is_file():
                data = path.read_bytes()
                read += 1
                for secret in SECRETS:
                    assert secret.encode() not in data, path
    assert read > 40
    assert not any(secret in said.text for secret in SECRETS), said.text


def test_no_secret_is_written_or_said(
    planted: tuple[World, LoopbackHub, LoopbackJudge, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, hub, judge, said = planted
    plan = world.plan("judged")
    here = Path.cwd()
    os.chdir(world.root)
    plan.write_tickets()
    os.chdir(here)

    # requests that fail: the hub refuses, breaks, sends away; the judge repeats the key it got
    for kind, options in (("401", {}), ("gated", {}), ("403", {}), ("429", {"retry_after": 0}), ("503", {})):
        hub.fail("*", kind, None, **options)
        assert "error: " in step(world, said, "retrieve", status=1)
        hub.mend()
    hub.fail("/cdn/*", "403", None)
    assert "error: " in step(world, said, "retrieve", status=1)
    hub.mend()
    for stage in ("retrieve", "prepare", "subset", "build", "train", "predict"):
        step(world, said, stage)
    assert any(request.token == f"Bearer {TOKEN}" for request in hub.requests)
    for action in ("401", "404", "500", "400", "redirect", "quota", "html", "hang up"):
        judge.plan["q"] = [action] * 40
        assert "error: " in step(world, said, "judge", status=1), action
    judge.plan["q"] = []
    judge.plan["q"] = ["echo key"] * 40  # a service that repeats the key in its answers
    for stage in ("judge", "score", "tabulate", "plot", "report"):
        step(world, said, stage)
    assert judge.requests and all(action != "401" for _, action in judge.requests[-4:])

    # a plain file of the web behind a proxy that needs a password and is not there
    world.change(
        "config/datasets/own.yaml", "source.from", {"own": {"url": "https://example.invalid/own.zip"}}
    )
    assert "no connection" in step(world, said, "retrieve", "small", status=1)
    # by hand: a mirror with a password and a signed address, which the configuration would refuse
    mirror = f"{hub.endpoint.replace('//', f'//me:{PROXY}@')}/files/none/own.zip?X-Amz-Signature={SIGNATURE}"
    execution = f'{{"mirrors": {{"https://example.invalid/own.zip": "{mirror}"}}}}'
    done = world.job("retrieve", "small", execution=execution, log="results/logs/mirror.log")
    said.text += done.out + done.err
    assert done.status == 1 and "no such file" in done.err
    search(world, said)  # a success takes the notes of failures away

    # the same by the password in ~/.netrc, to the end
    (hub.root / "files/none").mkdir(parents=True)
    (hub.root / "files/none/own.zip").write_bytes(b"PK")
    home = world.root.parent / "hub/home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {PROXY}\n")
    (home / ".netrc").chmod(0o600)
    execution = f'{{"mirrors": {{"https://example.invalid/": "{hub.endpoint}/files/none/"}}}}'
    done = world.job("retrieve", "small", execution=execution, log="results/logs/netrc.log")
    said.text += done.out + done.err
    assert done.status == 0, done.err
    assert hub.requests[-1].token == "Basic " + base64.b64encode(f"me:{PROXY}".encode()).decode()
    search(world, said)


def test_the_command_line_says_no_secrets(planted: tuple[World, LoopbackHub, LoopbackJudge, Said]) -> None:
    """What Snakemake prints, its own logs, and the commands that ``peftbench ticket`` writes."""
    world, _, _, said = planted
    done = world.process("snakemake", "-n", "-p", "judged")
    assert done.status == 0, done.err
    said.text += done.out + done.err
    fetched = f"results/{world.job_of('retrieve', 'judged')[1].record}"
    done = world.process("snakemake", "--cores", "1", "-p", fetched)
    assert done.status == 0, done.err
    said.text += done.out + done.err
    digest = world.job_of("judge", "judged")[1].digest
    for command in (
        ("runs", "judged"),
        ("ticket", digest),
        ("plan", "judged", "--json", "-"),
        ("explain", digest),
    ):
        shown = world.cli(*command)
        assert shown.status == 0, shown.err
        said.text += shown.out + shown.err
    search(world, said)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:PLANTED@host/x.zip",
        "https://PLANTED@host/x.zip",
        "https://host/x.zip?token=PLANTED",
        "https://host/x.zip?a=1&X-Amz-Signature=PLANTED",
        "https://host/x.zip?api_key=PLANTED#part",
    ],
)
def test_addresses_with_secrets_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(UserError, match=r"x: the address holds .*netrc") as caught:
        refuse_secrets(url, "x")
    assert "PLANTED" not in str(caught.value)
    cleaned = without_secrets(f"cannot fetch {url}: no")
    assert "PLANTED" not in cleaned and "host/x.zip" in cleaned and cleaned.endswith(": no")


@pytest.mark.parametrize(
    "url", ["https://host/x.zip?download=1", "http://host:80/a@b.zip", "https://host/token/key.zip"]
)
def test_plain_addresses_stay(url: str) -> None:
    refuse_secrets(url, "x")
    assert without_secrets(url) == url


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "PLANTEDvalue")
    monkeypatch.setenv("NO_SECRET_AT_ALL", "PLANTEDother")
    assert without_secrets("a PLANTEDvalue PLANTEDother") == "a *** PLANTEDother"
    assert (
        is_secret("api_key") and is_secret("token") and not is_secret("max_tokens") and not is_secret("seed")
    )
