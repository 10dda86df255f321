"""The token that ends an answer and the one that fills up rows, with templates as the families have them."""

import json
from pathlib import Path

import pytest
import torch
from tiny import SPECIAL, STYLES, load_tiny, make_roles, make_tiny_model, make_tokenizer
from tiny_run import make_config
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from lowrank_rlhf.config.schema import ModelConfig, SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.export.merged_model import plan_merged, write_generation_config
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.sources.chat_template import ANSWERED, choose_padding, end_of_turn
from lowrank_rlhf.sources.tokenizer import load_tokenizer

# By hand, from the templates: what ends an answer, and what is left to pad with.
ENDS = {
    "chatml": ("<|im_end|>", "<|endoftext|>"),
    "gemma": ("<end_of_turn>", "<pad>"),
    "phi": ("<|end|>", "<|endoftext|>"),
    "qwen-base": ("<|im_end|>", "<|endoftext|>"),
    "llama2": ("</s>", "<unk>"),
    "llama3": ("<|eot_id|>", "<|finetune_right_pad_id|>"),
}
each_style = pytest.mark.parametrize("style", ENDS)
SAID, ANSWER = "which of them is kind?", "the user asks"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {style: make_tiny_model(tmp_path_factory.mktemp(style), style=style) for style in ENDS}


@each_style
def test_end_and_padding(folders, style) -> None:
    base = load_tiny(folders[style])
    names = tuple(base.tokenizer.convert_ids_to_tokens([base.eos, base.pad]))
    assert names == ENDS[style]
    assert base.model.config.pad_token_id == base.pad
    assert base.decode(base.encode_response(f" {ANSWER}")) == ANSWER


@each_style
def test_an_answer_is_trained_as_the_template_writes_it(folders, style) -> None:
    """The oracle is the whole conversation through transformers: prompt and answer with its end are how it begins."""
    base, plain = load_tiny(folders[style]), AutoTokenizer.from_pretrained(folders[style])
    turns = [{"role": "user", "content": SAID}, {"role": "assistant", "content": ANSWER}]
    whole = plain.apply_chat_template(turns, tokenize=False)
    whole = whole.replace(f" {ANSWER} ", ANSWER)  # Llama 2 writes spaces around an answer, which are not trained on
    expected = plain(whole, add_special_tokens=False)["input_ids"]
    prompt = base.encode_prompt(Prompt(id="a", messages=(Message(role="user", content=SAID),)))
    found = prompt + base.encode_response(ANSWER)
    assert found == expected[: len(found)]


@each_style
def test_a_tokenizer_without_torch_says_the_same(folders, style) -> None:
    base = load_tiny(folders[style])
    alone = load_tokenizer(ModelConfig(source=str(folders[style])), Progress.silent())
    assert alone.end == ENDS[style][0]
    message = Message(role="user", content=SAID)
    assert alone.prompts([[message]]) == [len(base.encode_prompt(Prompt(id="a", messages=(message,))))]


def test_special_tokens_may_be_objects(folders, tmp_path) -> None:
    """As older folders have them: the beginning of the text is in every prompt all the same."""
    for style in ("llama2", "gemma"):
        whole = load_tokenizer(ModelConfig(source=str(folders[style])), Progress.silent())
        folder = tmp_path / style
        folder.mkdir()
        for path in folders[style].glob("*[!s]"):
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text())
        for name in STYLES[style][2]:
            config[name] = {"__type": "AddedToken", "content": config[name], "lstrip": False, "special": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        old = load_tokenizer(ModelConfig(source=str(folder)), Progress.silent())
        message = Message(role="user", content=SAID)
        assert old.render([message]) == whole.render([message])
        assert old.render([message]).startswith(STYLES[style][2]["bos_token"])
        assert old.end == ENDS[style][0]


@pytest.mark.parametrize("style", ["gemma", "phi"])
def test_sampling_stops_at_the_templates_token_and_not_at_the_end_of_text(folders, style) -> None:
    roles = make_roles(load_tiny(folders[style], merged=False))
    base = roles.base
    names = [ENDS[style][0], STYLES[style][2]["eos_token"]]
    end, text_end = base.tokenizer.convert_tokens_to_ids(names)
    answers = sample_answers(
        roles, Role.POLICY, [[10, 11, 12]] * 40, SampleConfig(max_new_tokens=200, batch_size=40), seed=0
    )
    tokens = [response.tokens for [response] in answers]
    assert any(text_end in row[:-1] for row in tokens), "the oracle needs an answer that goes on after it"
    for [response] in answers:
        assert end not in response.tokens[:-1]
        assert response.finished == (response.tokens[-1] == end)


@pytest.mark.parametrize("style", ["gemma", "phi"])
def test_an_export_ends_as_the_run_did(folders, tmp_path, style) -> None:
    base = load_tiny(folders[style])
    write_generation_config(base, make_config(tmp_path), tmp_path)
    plan_merged(base, torch.bfloat16).config.save_pretrained(tmp_path)
    end, pad = base.tokenizer.convert_tokens_to_ids(list(ENDS[style]))
    for config in (GenerationConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert (config.eos_token_id, config.pad_token_id) == (end, pad)


def test_the_order_of_what_can_pad() -> None:
    tokens = ["<s>", "</s>", "<mask>", "<|reserved_7|>", "<unk>", "<|endoftext|>", "<|right_pad|>"]
    expected = ["<|right_pad|>", "<|endoftext|>", "<unk>", "<|reserved_7|>", "<mask>", None]
    used = "<s>hello</s>"
    for token in expected:
        assert choose_padding(tokens, "<unk>", used) == token
        used += token or ""


def test_no_token_to_pad_with(tmp_path) -> None:
    folder = make_tiny_model(tmp_path)
    make_tokenizer(SPECIAL[1:], STYLES["chatml"][1], {"eos_token": SPECIAL[2]}).save_pretrained(folder)
    with pytest.raises(UserError, match=r"has no token to pad with: <\|im_end\|> .* Set pad_token in the"):
        load_tiny(folder)


def test_a_token_without_an_embedding(tmp_path) -> None:
    folder = make_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"the tokenizer's \[PAD\] is beyond the model's 300 embeddings"):
        load_tiny(folder)


def test_a_template_that_puts_nothing_falls_back_on_the_end_of_text(tmp_path) -> None:
    bare = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    folder = make_tiny_model(tmp_path)
    make_tokenizer(SPECIAL, bare, STYLES["chatml"][2]).save_pretrained(folder)
    base = load_tiny(folder)
    assert (base.eos, base.pad) == (2, 0)
    assert load_tokenizer(ModelConfig(source=str(folder)), Progress.silent()).end == SPECIAL[2]


def test_what_follows_an_answer_ends_it() -> None:
    tokens = ["<s>", "</s>", "<|end", "<|end|>", "is"]
    said = f"<s>{ANSWERED[0]['content']}</s>{ANSWERED[1]['content']}"
    assert end_of_turn(f"{said} \n<|end|>\n</s>", tokens) == "<|end|>"
    assert end_of_turn(f"{said}</s>", tokens) == "</s>"
    assert end_of_turn(f"{said}. </s>", tokens) is None
    assert end_of_turn("it is</s>", tokens) is None
