"""Templates as models and users have them: completed, or refused before any work. Rendered text is compared by hand."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from platforms import posix

from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.run.progress import StopRequest, stop_at_once
from lowrank_rlhf.sources.chat_template import ChatTemplate, LeavesOut, TemplateRefuses
from lowrank_rlhf.sources.template_checks import check_template, first_token

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What Qwen3's own writes: thoughts of earlier answers are removed, and the last answer has an empty think block.
QWEN3 = (
    "{%- for m in messages %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{- said + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}\n"
)
QWEN3_THINKING = QWEN3.replace("{{- '<|im_start|>assistant\n' }}", "{{- '<|im_start|>assistant\n<think>\n' }}")
R1 = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
NO_THOUGHTS = R1.replace("<think>\n", "<think>\n\n</think>\n\n")
NO_PROMPT = CHATML.partition("{% if add_g")[0]
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system') }}{% elif m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
HELLO = [{"role": "user", "content": "Hello?"}]
TALK = [*HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And?"}]
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


def checked(text: str, first: str = "") -> tuple[ChatTemplate, list[str]]:
    return check_template(ChatTemplate(text, NAMED), "this template", first)


def refused(text: str, first: str = "") -> str:
    with pytest.raises(UserError) as caught:
        checked(text, first)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (CHATML, "<|im_start|>assistant\n"),
        (NO_PROMPT, "<|im_start|>assistant\n"),
        (NO_THOUGHTS, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (QWEN3, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (QWEN3_THINKING, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_an_answer_follows_all_that_the_template_writes_before_it(template, prompt) -> None:
    found, notes = checked(template)
    assert found.render(HELLO) == f"<|im_start|>user\nHello?<|im_end|>\n{prompt}"
    earlier = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert found.render(TALK) == f"{earlier}<|im_start|>user\nAnd?<|im_end|>\n{prompt}"
    assert notes == []
    if template not in (QWEN3, QWEN3_THINKING, NO_PROMPT):
        assert found.text == template


def test_a_conversation_with_its_answer_is_rendered_as_before() -> None:
    for template in (NO_PROMPT, QWEN3, QWEN3_THINKING):
        found, own = checked(template)[0], ChatTemplate(template, {})
        assert found.render(TALK[:2], answered=True) == own.render(TALK[:2], answered=True)


def test_a_space_before_an_answer_is_no_part_of_the_prompt() -> None:
    found, notes = checked(LLAMA_2, "<s>")
    assert found.render(HELLO) == "<s>[INST] Hello? [/INST]"
    assert notes == ["this template rejects system messages (No system): prompts with one are an error"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("messages %}", "messages if m.role != 'system' %}"),
         "leaves out the system message of a conversation with system messages"),
        (CHATML.replace("messages %}", "messages[-1:] %}"), "leaves out the user's message"),
        (CHATML.replace("messages %}", "messages if m.role != 'assistant' %}"), "leaves out the assistant's message"),
        ("{{ messages[0].content }}{{ messages[1].content if messages | length == 2 }}",
         "leaves out the assistant's message of a conversation with several rounds"),
        (R1, "writes '<think>\\n' before an answer to generate, but '' before a recorded one"),
        (CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"),
         "writes 'bot\\n' before an answer to generate, but 'assistant\\n' before a recorded one"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content / 0 }}{% endfor %}", "cannot render a user's"),
        ("{{ 1 // 0 }}", "cannot render a user's question (ZeroDivisionError: integer division or modulo by zero)"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "cannot render a user's question (RecursionError"),
        ("{{ {}.popitem() }}", "cannot render a user's question ("),
        (CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' else 1 // 0 }}"),
         "cannot render an answer (ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_template_that_would_train_something_else_is_refused(template, message) -> None:
    assert f"model.chat_template: this template {message}" in refused(template)


def test_the_first_token_is_written_once() -> None:
    assert checked("<s>" + CHATML, "<s>")[0].text == "<s>" + CHATML
    assert refused("{{ bos_token }}<s>" + CHATML).startswith(
        "model.chat_template: this template begins with <s> twice."
    )
    assert refused(CHATML, "<s>") == (
        "model.chat_template: this template does not begin with <s>, the first token of every text of this model. "
        "Begin it with {{ bos_token }}"
    )
    own = ChatTemplate("<s>" + CHATML, NAMED)
    assert first_token(own, "<s>", "") == first_token(None, "<s>", "<s>") == "<s>"
    assert first_token(ChatTemplate(CHATML, NAMED), "<s>", "<s>") == first_token(None, "<s>", "x") == ""
    assert first_token(own, None, "<s>") == first_token(ChatTemplate("{{ 1 // 0 }}", NAMED), "<s>", "<s>") == ""


def test_a_prompt_whose_turn_is_left_out_is_an_error() -> None:
    """A template may leave out a turn for other reasons than its role: here its length."""
    short = ChatTemplate(CHATML.replace("messages %}", "messages if m.content | length < 20 %}"), {})
    assert short.render(TALK)
    with pytest.raises(LeavesOut, match=r"^leaves out the user's message$"):
        short.render([{"role": "user", "content": "a long question" * 9}])
    twice = [TALK[0], TALK[1], TALK[0]]
    with pytest.raises(LeavesOut):  # the same words are in the text once
        ChatTemplate("{{ messages[0].content }} {{ messages[1].content }}", {}).render(twice)
    thoughts = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi."}
    assert "Hm." not in ChatTemplate(QWEN3, {}).render([TALK[0], thoughts, TALK[2]])
    late = "{{ messages[1].content }} {{ messages[0].content }}"
    assert ChatTemplate(late, {}).render([{"role": "system", "content": "Be brief."}, *HELLO])


ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@posix
def test_an_endless_template_ends_at_sigterm() -> None:
    code = (
        "from lowrank_rlhf.run.progress import StopRequest\n"
        "from lowrank_rlhf.errors import Stopped\n"
        "from lowrank_rlhf.sources.chat_template import ChatTemplate\n"
        "ChatTemplate('x{{ messages[0].content }}', {}).render([{'role': 'user', 'content': 'a'}])\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        f"    try: ChatTemplate({ENDLESS!r}, {{}}).render([])\n"
        "    except Stopped as error: print(error)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out.startswith("Stopped; ")
    assert process.returncode == 0


def test_a_stop_elsewhere_waits_for_the_next_check() -> None:
    with StopRequest() as stop:
        thread = threading.Thread(target=lambda: stop_at_once().__enter__())
        thread.start()
        thread.join()
        with stop_at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    with StopRequest(), pytest.raises(Stopped), stop_at_once():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_exception_is_a_sentence() -> None:
    with pytest.raises(TemplateRefuses, match=r"^ZeroDivisionError: "):
        ChatTemplate("{{ 1 // 0 }}", {}).render([])
