"""`validate` and `plan` name a chat template that is missing or cannot be used, of a folder, GGUF file or config."""

from pathlib import Path

import gguf
import pytest
from tiny import CHATML, SPECIAL, STYLES, make_tokenizer
from tiny_run import make_config

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.sources.local_template import check_local_template
from lowrank_rlhf.sources.template_checks import BadTemplate

NO_SYSTEM = CHATML.replace("in messages %}", "in messages if message.role != 'system' %}")
LAST_ONLY = CHATML.replace("in messages %}", "in messages[-2:] %}")
SYSTEM = "leaves out the system message of a conversation with system messages. Set another in the config"
ROUNDS = "leaves out the user's message of a conversation with several rounds. Set another in the config"


def folder_with(folder: Path, template: str | None, style: str = "chatml") -> Path:
    make_tokenizer(STYLES[style][0], template or CHATML, STYLES[style][2]).save_pretrained(folder)
    if template is None:
        (folder / "chat_template.jinja").unlink()
    return folder


def gguf_with(folder: Path, template: str | None) -> Path:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_token_list(["<s>", *SPECIAL])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return folder / "model.gguf"


def problem(source: Path | str, chat_template: str | None = None) -> str:
    with pytest.raises(BadTemplate) as caught:
        check_local_template(ModelConfig(source=str(source), chat_template=chat_template))
    assert str(caught.value) == f"model.chat_template: {caught.value.problem}"
    return caught.value.problem


@pytest.mark.parametrize("made", [folder_with, gguf_with])
def test_of_a_model_on_this_machine(tmp_path, made) -> None:
    source = made(tmp_path, NO_SYSTEM)
    assert problem(source).endswith(SYSTEM)
    assert problem(source, LAST_ONLY) == f"this template {ROUNDS}"
    check_local_template(ModelConfig(source=str(source), chat_template=CHATML))
    check_local_template(ModelConfig(source=str(made(tmp_path, CHATML))))
    source = made(tmp_path, None)
    assert "has no chat template. " in problem(source)
    check_local_template(ModelConfig(source=str(source), chat_template=CHATML))


def test_the_first_token_is_the_one_of_the_models_own_template(tmp_path) -> None:
    """Gemma without <bos> writes nonsense."""
    gemma = folder_with(tmp_path, STYLES["gemma"][1], "gemma")
    assert problem(gemma, CHATML).startswith("this template does not begin with <bos>, the first token of every text")
    check_local_template(ModelConfig(source=str(gemma), chat_template="{{ bos_token }}" + CHATML))
    file = gguf_with(tmp_path, "{{ bos_token }}" + CHATML)
    check_local_template(ModelConfig(source=str(file)))
    assert problem(file, CHATML).startswith("this template does not begin with <s>, ")
    assert problem(file, "<s>{{ bos_token }}" + CHATML).startswith("this template begins with <s> twice. ")


def test_of_a_config_whose_model_is_not_on_this_machine() -> None:
    assert problem("someone/nothing-like-this", NO_SYSTEM) == f"this template {SYSTEM}"
    for template in (None, CHATML, "{{ bos_token + '' }}" + CHATML):
        check_local_template(ModelConfig(source="someone/nothing-like-this", chat_template=template))


def test_it_is_one_of_the_problems_of_a_config(tiny_folder, tmp_path) -> None:
    data = tmp_path / "my.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    config = make_config(tiny_folder(), data, model__chat_template=LAST_ONLY)
    assert problems(config) == [(("model", "chat_template"), f"this template {ROUNDS}")]
    assert problems(make_config(tiny_folder(), data)) == []
