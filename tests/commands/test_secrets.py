"""Tokens, a key and the page's password are in the environment of a whole run, and in nothing that it leaves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import ROOT, page_server
from chat_server import serving
from golden import FOLDER
from http_requests import PASSWORD, ask, log_in
from tiny_run import make_config

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config

SECRETS = {
    "OPENAI_API_KEY": "sk-fake-0123456789abcdef",
    "HF_TOKEN": "hf_fake0123456789abcdef",
    "WANDB_API_KEY": "fake-wandb-0123456789",
    "LOWRANK_RLHF_PASSWORD": PASSWORD,
}
COMMANDS = (
    "validate my.yaml",
    "plan my.yaml",
    "run my.yaml",
    "status tiny --json",
    "doctor --json",
    "evaluate tiny --limit 2 --out versus.json",
    "export tiny runs/tiny/exports/adapters --what adapters",
    "export tiny runs/tiny/exports/merged --what merged",
    "export tiny runs/tiny/exports/reward --what reward",
    "annotations export tiny rankings.jsonl",
    "run my.yaml ppo.steps=5",  # refused: what changed is listed
)
ADDRESSES = (
    "/",
    "/config",
    "/theme.css",
    "/runs/tiny/report.html",
    "/runs/tiny/report.md",
    "/runs/tiny/exports/adapters.zip",
)


def leaks(content: bytes) -> list[str]:
    """Names of the secrets that stand in it."""
    return [name for name, secret in SECRETS.items() if secret.encode() in content]


def run_whole(command: str) -> tuple[int, bytes]:
    """In a process of its own, which reads the environment anew: its exit code, and all that it printed."""
    arguments = [sys.executable, "-m", "lowrank_rlhf", *command.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, capture_output=True, env=environment, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def said(tmp_path, monkeypatch, capfdbinary) -> dict[str, bytes]:
    """What each command printed in a folder that a language model judged a whole run in."""
    monkeypatch.chdir(tmp_path)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    shutil.copytree(FOLDER / "model", "model")
    shutil.copy(FOLDER / "prompts.jsonl", "prompts.jsonl")

    def call(command: str) -> tuple[int, bytes]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *command.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, b"".join(capfdbinary.readouterr())

    found = {}
    with serving() as server:
        endpoint = {"url": server.url, "model": "judge-1"}
        config = make_config(Path("model"), Path("prompts.jsonl"), rank__judge="endpoint", rank__endpoint=endpoint)
        Path("my.yaml").write_text(dump_config(config))
        for command in COMMANDS:
            code, found[command] = run_whole(command) if command == "run my.yaml" else call(command)
            assert code == (3 if "steps=5" in command else 0), found[command].decode()
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}
    return found


def test_no_secret_is_in_a_file_a_message_or_the_page(said: dict[str, bytes], tmp_path: Path) -> None:
    assert {command: leaks(output) for command, output in said.items() if leaks(output)} == {}
    with page_server(Path("runs").absolute(), password=PASSWORD) as (url, _):
        cookie = log_in(url)
        answers = {path: ask(url, path, Cookie=cookie) for path in ADDRESSES}
    assert {path: status for path, (status, _, _) in answers.items() if status != 200} == {}
    assert {path: leaks(content) for path, (_, content, _) in answers.items() if leaks(content)} == {}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.html", "env.json", "README.md", "verdicts.jsonl", "model.safetensors", "versus.json"} <= names
    assert any(path.name.startswith("server-") for path in files)  # the page's own log
    assert {str(path): leaks(path.read_bytes()) for path in files if leaks(path.read_bytes())} == {}
