"""`push` lists before it sends, sends only what `export` writes, and keeps the token to itself."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from exports import export_merged, export_reward
from tiny_finished import finished_run

from lowrank_rlhf import cli
from lowrank_rlhf.export.export import export_adapters
from lowrank_rlhf.export.push import list_upload

TOKEN = "hf_neverShownAnywhere"


class FakeApi:
    """The three calls, and what they were given."""

    def __init__(self, private: bool | None = None, fails: Exception | None = None):
        self.private, self.fails = private, fails
        self.made: dict[str, Any] = {}
        self.sent: list[str] = []

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        if self.fails:
            raise self.fails
        self.made = {"repository": repository, "private": private, "exist_ok": exist_ok}
        self.private = private if self.private is None else self.private

    def repo_info(self, repository: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private, id=repository)

    def create_commit(self, repository: str, operations: list[Any], commit_message: str) -> SimpleNamespace:
        assert commit_message
        self.sent = [operation.path_in_repo for operation in operations]
        return SimpleNamespace(commit_url=f"https://hub/{repository}/commit/1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export with things in it that are nobody's business."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made"
    (made / "policy").mkdir(parents=True)
    for name in ("README.md", "config.json", "model.safetensors", "policy/adapter_config.json"):
        (made / name).write_text("{}")
    for name in (".env", "token.txt", "notes.json", "policy/pytorch_model.bin"):
        (made / name).write_text("secret")
    (tmp_path / "elsewhere.json").write_text("secret")
    (made / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    return made


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
    return fake


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "push", *arguments])
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


@pytest.mark.usefixtures("folder")
def test_without_yes_it_only_lists(command, api: FakeApi) -> None:
    code, out, err = command("made", "anna/x")
    assert (code, err, api.made, api.sent) == (0, "", {}, [])
    assert "  model.safetensors" in out
    assert "  .env: not uploaded" in out
    assert "to upload to the private repository anna/x. Nothing was uploaded" in out


@pytest.mark.usefixtures("folder")
def test_with_yes_it_sends_an_exports_files_and_nothing_else_to_a_private_repository(command, api: FakeApi) -> None:
    code, out, _ = command("made", "anna/x", "--yes")
    assert code == 0
    assert api.made == {"repository": "anna/x", "private": True, "exist_ok": True}
    assert api.sent == ["README.md", "config.json", "model.safetensors", "policy/adapter_config.json"]
    assert out.endswith("uploaded to the private repository anna/x: https://hub/anna/x/commit/1\n")


@pytest.mark.usefixtures("folder")
def test_public_only_when_asked(command, api: FakeApi) -> None:
    assert command("made", "anna/x", "--yes", "--public")[0] == 0
    assert api.made["private"] is False


@pytest.mark.parametrize(
    ("private", "options", "says"),
    [(False, [], "is public; add --public if that is meant"), (True, ["--public"], "is private; leave out --public")],
)
@pytest.mark.usefixtures("folder")
def test_an_existing_repository_is_as_visible_as_asked_or_nothing_goes(command, api, private, options, says) -> None:
    api.private = private
    code, _, err = command("made", "anna/x", "--yes", *options)
    assert (code, api.sent) == (2, [])
    assert says in err
    assert "Nothing was sent" in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (huggingface_hub.errors.HFValidationError("bad"), "expected OWNER/NAME of letters"),
        (huggingface_hub.errors.LocalTokenNotFoundError("none"), "hf auth login"),
        (huggingface_hub.errors.OfflineModeIsEnabled("off"), "offline mode is on"),
        (ConnectionError("refused\nmore"), "did not take it (refused); the same command may be tried again"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_the_hub_refuses_is_a_sentence(command, api: FakeApi, error: Exception, says: str) -> None:
    api.fails = error
    code, _, err = command("made", "anna/x", "--yes")
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_mistakes(command, folder: Path) -> None:
    assert command("made", "x")[::2] == (2, "x: must be OWNER/NAME\n")
    assert "no such folder" in command("nowhere", "anna/x")[2]
    (folder / "model.safetensors").unlink()
    assert "no weights (*.safetensors, *.gguf) with a card (README.md)" in command("made", "anna/x")[2]


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.usefixtures("folder")
def test_a_server_sees_the_token_and_no_one_else_does(command, monkeypatch, tmp_path, status: int) -> None:
    """The real library against a server of ours that refuses."""
    seen: list[str | None] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            seen.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **more: real(endpoint=address, **more))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = command("made", "anna/x", "--yes")
    server.shutdown()
    server.server_close()
    assert code == 2
    assert f"Bearer {TOKEN}" in seen
    assert TOKEN not in out + err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = {401: "hf auth login", 403: "may not write there", 500: "may be tried again"}
    assert words[status] in err


def test_all_that_export_writes_is_sent(tiny_folder, tmp_path) -> None:
    context = finished_run(tiny_folder(), tmp_path)
    export_merged(context, "policy", "bfloat16", tmp_path / "merged")
    export_reward(context, "bfloat16", tmp_path / "reward")
    export_adapters(context.run_dir, context.config, tmp_path / "adapters")
    for name in ("merged", "reward", "adapters"):
        upload = list_upload(tmp_path / name)
        assert upload.left_out == ()
        assert upload.size == sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
