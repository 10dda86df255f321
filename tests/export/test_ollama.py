"""The Modelfile's template, translated back and rendered, writes what the model's own template writes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from go_template import go_template, rendered_by_go
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny import SPECIAL, STYLES, make_tokenizer
from tokenizers.processors import TemplateProcessing

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.export.ollama import Turn, modelfile
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.chat_template import TemplateRefuses, render
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.tokenizer import added_first, read_tokenizer

QUICKSTART, THOUGHTLESS = (load_config(Path(name)).model.chat_template for name in ("quickstart", "gpu_8gb"))
WITH_DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set said = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"  # noqa: E501 - a model's own
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set said = '<|begin_of_text|>' + said %}{% endif %}{{ said }}{% endfor %}"  # noqa: E501 - a model's own
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BOS = {GEMMA: "<bos>", LLAMA_3: "<|begin_of_text|>"}
SYSTEM_IN_QUESTION = (
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n{% endif %}{{ m['content'] }} [/INST]"  # noqa: E501 - a model's own
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
CONVERSATION = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And how?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def renderer(template: str):
    def refuse(message: str) -> None:
        raise TemplateError(message)

    compiled = ImmutableSandboxedEnvironment(keep_trailing_newline=True).from_string(template)

    def render(messages: Sequence[Turn], answered: bool) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=not answered, raise_exception=refuse)
        except TemplateError as error:
            raise TemplateRefuses(str(error)) from None

    return render


def made(template: str) -> str:
    return modelfile(renderer(template), BOS.get(template, ""), "<|im_end|>", load_config(Path("quickstart")))


def template_of(template: str) -> str:
    return go_template(made(template))


def test_chatml_by_hand() -> None:
    assert template_of(QUICKSTART) == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [QUICKSTART, THOUGHTLESS, WITH_DEFAULT_SYSTEM, GEMMA, LLAMA_3])
@pytest.mark.parametrize("turns", [1, 3])
def test_it_writes_what_the_models_template_writes_without_the_first_token(template, turns) -> None:
    expected = renderer(template)(CONVERSATION[:turns], False).removeprefix(BOS.get(template, ""))
    assert rendered_by_go(template_of(template), CONVERSATION[:turns]) == expected


@pytest.mark.parametrize("template", [QUICKSTART, THOUGHTLESS, WITH_DEFAULT_SYSTEM, LLAMA_3])
def test_a_system_turn_stands_where_the_model_wants_it(template) -> None:
    messages = [SYSTEM, *CONVERSATION]
    expected = renderer(template)(messages, False).removeprefix(BOS.get(template, ""))
    assert rendered_by_go(template_of(template), messages) == expected
    assert "Be good." not in expected


@pytest.mark.parametrize("template", [GEMMA, SYSTEM_IN_QUESTION])
def test_a_system_turn_that_is_no_turn_of_its_own_is_left_out(template) -> None:
    assert 'eq .Role "system"' not in made(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }} {{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}",
        QUICKSTART.replace("<|im_start|>", '\\"\\"\\"'),
    ],
)
def test_a_template_that_cannot_be_put_so_is_not_guessed(template) -> None:
    text = made(template)
    assert "TEMPLATE" not in text
    assert "# The chat template cannot be written in Ollama's language.\n" in text


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("style", ["quickstart", "gemma", "llama3"])
def test_ollama_reads_the_ids_that_the_model_was_trained_on(style, added) -> None:
    """Oracle: transformers' ids of the conversation. Ollama's tokenizer puts the first token there if the model's does.

    The quickstart's model has <|im_start|> as `bos_token`, begins every turn with it, and does not add it to a text.
    """
    quickstart = (SPECIAL, QUICKSTART, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    tokenizer = make_tokenizer(*(quickstart if style == "quickstart" else STYLES[style]))
    if added:
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    assert added_first(tokenizer) == (tokenizer.bos_token if added else "")
    text = modelfile(partial(render, tokenizer), added_first(tokenizer), "<|im_end|>", load_config(Path("quickstart")))
    if style == "quickstart" and added:  # one token too many: no template can take it away from a turn
        assert "TEMPLATE" not in text
        return
    go = go_template(text)
    for messages in (CONVERSATION[:1], CONVERSATION, [SYSTEM, *CONVERSATION]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokenizer(rendered_by_go(go, messages))["input_ids"] == expected
        assert expected.count(tokenizer.bos_token_id) == (len(messages) + 1 if style == "quickstart" else 1)


@pytest.mark.real_model
def test_the_quickstarts_own_tokenizer() -> None:
    """Ids by hand: 1 is <|im_start|>, 520 and 9531 are "ass" and "istant", 198 is a line break."""
    model = load_config(Path("quickstart")).model
    tokenizer = read_tokenizer(fetch_model(model, Progress.silent()), model, Progress.silent())
    text = modelfile(partial(render, tokenizer), added_first(tokenizer), "<|im_end|>", load_config(Path("quickstart")))
    for messages in (CONVERSATION[:1], CONVERSATION, [SYSTEM, *CONVERSATION]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokenizer(rendered_by_go(go_template(text), messages))["input_ids"] == expected
        assert expected.count(1) == len(messages) + 1
    assert expected[-4:] == [1, 520, 9531, 198]


def test_it_samples_as_the_run_does() -> None:
    lines = made(QUICKSTART).splitlines()
    assert "FROM ." in lines
    settings = dict(line.split()[1:] for line in lines if line.startswith("PARAMETER"))
    assert settings == {
        "stop": '"<|im_end|>"', "num_ctx": "96", "num_predict": "48", "temperature": "0.7",
        "top_k": "0", "top_p": "1", "min_p": "0", "repeat_penalty": "1",
    }  # fmt: skip
