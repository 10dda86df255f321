"""Models and files of ModelScope, by a stand-in for its library that copies files instead of downloading them."""

import json
import shutil
import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_config, write_prompts

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.data.readers.sources import read_rows, resolve
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import fetch_model, local_model, model_identity
from lowrank_rlhf.sources.model_shape import find_shape
from lowrank_rlhf.sources.remote import modelscope
from lowrank_rlhf.stages import stage

DATA = "modelscope:anna/questions/data/train.jsonl@v2"


@pytest.fixture
def library(tmp_path: Path, tiny_folder, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls that the stand-in received."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(model_id: str, *, local_dir: str, **given: Any) -> str:
        calls.append({"id": model_id} | given)
        if model_id.endswith("gone"):
            raise ValueError("404 not found\nurl")
        shutil.copytree(tiny_folder("llama"), local_dir, dirs_exist_ok=True)
        return local_dir

    def dataset_file_download(dataset_id: str, file_path: str, *, local_dir: str, **given: Any) -> str:
        calls.append({"id": dataset_id, "file": file_path} | given)
        target = Path(local_dir) / file_path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_prompts(target)
        return str(target)

    for name, function in (("snapshot_download", snapshot_download), ("file_download", dataset_file_download)):
        module = types.ModuleType(f"modelscope.hub.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(modelscope.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    return calls


def fetched(config: ModelConfig) -> Path:
    with Progress.silent() as progress:
        return fetch_model(config, progress)


def test_a_model_is_downloaded_once_without_pickles_and_code(library, tiny_folder) -> None:
    config = ModelConfig(source="modelscope:anna/tiny", revision="v1")
    assert local_model(config) is None
    folder = fetched(config)
    assert fetched(config) == folder == local_model(config)
    (call,) = library
    assert (call["id"], call["revision"]) == ("anna/tiny", "v1")
    downloaded = lambda name: any(fnmatch(name, pattern) for pattern in call["allow_patterns"])  # noqa: E731
    assert all(map(downloaded, ("model.safetensors", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")))
    assert not any(map(downloaded, ("tokenizer.py", "tokenizer.pkl", "vocab.pkl", "model.bin", "modeling_x.py")))
    assert find_shape(config).layers == find_shape(ModelConfig(source=str(tiny_folder("llama")))).layers
    assert model_identity(config).startswith("sha256 ")
    assert model_identity(config) == model_identity(ModelConfig(source=str(tiny_folder("llama"))))
    other = ModelConfig(source="modelscope:anna/tiny")
    assert local_model(other) is None  # another revision


def test_a_download_that_fails_leaves_no_model(library) -> None:
    config = ModelConfig(source="modelscope:anna/gone")
    with pytest.raises(UserError, match=r"modelscope:anna/gone: cannot be downloaded \(404 not found\)"):
        fetched(config)
    assert local_model(config) is None
    assert len(library) == 1


def test_the_rows_of_a_file_are_read_and_its_hash_is_in_the_fingerprint(library, tmp_path, tiny_folder) -> None:
    assert resolve(DATA) is None  # nothing is downloaded for it
    assert library == []
    rows = read_rows(DATA)
    assert read_rows(DATA) == rows
    assert library == [{"id": "anna/questions", "file": "data/train.jsonl", "revision": "v2"}]
    own = write_prompts(tmp_path / "own.jsonl")
    assert [row.fields for row in rows] == [json.loads(line) for line in own.read_text().splitlines()]
    config = make_config(tiny_folder("llama"), own)
    config = config.model_copy(update={"data": config.data.model_copy(update={"prompts": DATA})})
    found = current_fingerprint(stage("sft"), config, RunDir(tmp_path / "run"))
    assert found.inputs[DATA] == sha256(own)


def test_the_shape_of_a_presets_model_is_known_under_modelscope_too(library) -> None:
    assert find_shape(ModelConfig(source="modelscope:Qwen/Qwen3-4B")) == find_shape(ModelConfig(source="Qwen/Qwen3-4B"))
    assert library == []


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("source", ["modelscope:anna", "modelscope:anna/a/b.gguf", "modelscope:anna/a@v1"])
def test_other_forms_of_a_model_are_refused(source) -> None:
    with pytest.raises(UserError, match="expected modelscope:OWNER/NAME"):
        local_model(ModelConfig(source=source))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("revision", ["../v1", "v1/../../x", "/v1", "..", "a\\..\\b"])
def test_a_revision_stays_in_the_cache(revision) -> None:
    with pytest.raises(UserError, match=r"model\.revision: .*: expected a branch, tag or commit"):
        local_model(ModelConfig(source="modelscope:anna/tiny", revision=revision))
    assert local_model(ModelConfig(source="modelscope:anna/tiny", revision="release/v1..2")) is None


OUTSIDE = ("a/../../x.jsonl", "a//x.jsonl", "a/x.jsonl@../v1", "a/x.jsonl@/v1")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("source", ["modelscope:anna/a", *(f"modelscope:anna/{name}" for name in OUTSIDE)])
def test_other_forms_of_data_are_refused(source) -> None:
    with pytest.raises(UserError, match="expected modelscope:OWNER/NAME/FILE"):
        resolve(source)


def test_without_the_library_a_sentence_says_how_to_get_it(library, monkeypatch) -> None:
    monkeypatch.setattr(modelscope.importlib.util, "find_spec", lambda _: None)
    for call in (lambda: fetched(ModelConfig(source="modelscope:anna/tiny")), lambda: read_rows(DATA)):
        with pytest.raises(UserError, match=r"requires the package modelscope\. Run `pip install modelscope`"):
            call()
    assert library == []
