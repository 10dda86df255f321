"""Supported data formats: one table of their keys and of the functions that convert a row to an example."""

from collections.abc import Callable

from lowrank_rlhf.data.converters import demonstrations, pairs, rankings, verdicts
from lowrank_rlhf.data.converters.demonstrations import RESPONSES
from lowrank_rlhf.data.converters.prompts import CONTEXT, SYSTEM
from lowrank_rlhf.data.converters.verdict_formats import VERDICTS
from lowrank_rlhf.data.format_entry import Fields, Format
from lowrank_rlhf.data.readers.rows import listed
from lowrank_rlhf.data.turns import is_transcript


def _has_one_of(*keys: str) -> Callable[[Fields], bool]:
    return lambda fields: any(fields.get(key) is not None for key in keys)


def _is_rated(fields: Fields) -> bool:
    return _has_one_of(*RESPONSES)(fields) and _has_one_of(*rankings.RATINGS)(fields)


def _are_single_answers(fields: Fields) -> bool:
    return not any(isinstance(fields[key], list) and len(fields[key]) > 1 for key in ("chosen", "rejected"))


FORMATS = (
    Format(
        "prompt-completion",
        "TRL's prompt-only and prompt-completion: a prompt (text, or turns that end with the user), "
        "optionally with a response.",
        keys=("prompt",),
        optional=(*RESPONSES, "id", *CONTEXT),
        convert=demonstrations.prompt_completion,
        fits=lambda fields: not _is_rated(fields),
        example='{"prompt": "Why do cats purr?", "completion": "Mostly because they are content."}',
        ordered=False,
    ),
    Format(
        "messages",
        "TRL's messages: a conversation that ends with the user (a prompt) or with the assistant (a demonstration).",
        keys=("messages",),
        optional=(*RESPONSES, "id", *SYSTEM),
        convert=demonstrations.messages,
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
        ordered=False,
    ),
    Format(
        "preference",
        "TRL's preferences with an explicit prompt; chosen and rejected are text, the assistant's turn, or "
        "the prompt's turns followed by that turn.",
        keys=("prompt", "chosen", "rejected"),
        optional=CONTEXT,
        convert=pairs.after("prompt"),
        example='{"prompt": "Greet me.", "chosen": "Good morning!", "rejected": "No."}',
    ),
    Format(
        "implicit-preference",
        "TRL's preferences without a prompt: two conversations that are the same up to their last answers.",
        keys=("chosen", "rejected"),
        optional=SYSTEM,
        convert=pairs.implicit,
        fits=lambda fields: isinstance(fields["chosen"], list) and isinstance(fields["rejected"], list),
        requirement=", both lists of turns",
        example='{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
        '"rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}]}',
    ),
    Format(
        "hh-rlhf",
        "Anthropic's transcripts: two texts of turns that are the same up to their last answers.",
        keys=("chosen", "rejected"),
        optional=SYSTEM,
        convert=pairs.transcripts,
        fits=lambda fields: is_transcript(fields["chosen"]) and is_transcript(fields["rejected"]),
        requirement=', both transcripts ("Human: ...")',
        example=r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}',
    ),
    Format(
        "alpaca",
        "Alpaca's demonstrations; a non-empty input is appended to the instruction.",
        keys=("instruction", "output"),
        optional=("input", *CONTEXT),
        convert=demonstrations.alpaca,
        fits=lambda fields: not isinstance(fields["output"], list),
        example='{"instruction": "Translate into French.", "input": "Good morning", "output": "Bonjour"}',
        ordered=False,
    ),
    Format(
        "sharegpt",
        "ShareGPT's conversations; `from` is human, gpt or system.",
        keys=("conversations",),
        optional=SYSTEM,
        convert=demonstrations.sharegpt,
        example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
        ordered=False,
    ),
    Format(
        "ranked",
        "K answers to a prompt with one of: `ranking` (positions in `responses` from 0, best first; a nested list "
        "for ties), `ranks` (one number each, 1 is best) or `scores` (one each, higher is better).",
        keys=("prompt", "responses"),
        optional=(*rankings.ORDERS, *CONTEXT),
        convert=rankings.ranked,
        fits=_has_one_of(*rankings.ORDERS),
        requirement=f", and one of {listed(rankings.ORDERS)}",
        example='{"prompt": "Greet me.", "responses": ["No.", "Good morning!", "Hi."], "ranking": [1, 2, 0]}',
        keeps_positions=True,
    ),
    Format(
        "pandalm",
        "PandaLM's test set: two answers and three votes (1, 2, or 0 for a tie); two equal votes decide.",
        keys=("instruction", "response1", "response2", *verdicts.VOTES),
        optional=("input", *CONTEXT),
        convert=verdicts.pandalm,
        example='{"instruction": "Greet me.", "input": "", "response1": "Hi.", "response2": "No.", "annotator1": 1, '
        '"annotator2": 1, "annotator3": 0}',
        keeps_positions=True,
    ),
    Format(
        "question",
        "Orca's and GSM8K's demonstrations: a question with a response or an answer.",
        keys=("question",),
        optional=("response", "answer", *CONTEXT),
        convert=demonstrations.question,
        fits=_has_one_of("response", "answer"),
        requirement=', and one of "response", "answer"',
        example='{"system_prompt": "Be brief.", "question": "Why do cats purr?", "response": "They are content."}',
        ordered=False,
    ),
    Format(
        "dolly",
        "Dolly's demonstrations; a non-empty context is appended to the instruction.",
        keys=("instruction", "response"),
        optional=("context",),
        convert=demonstrations.dolly,
        example='{"instruction": "Who purrs?", "context": "Cats purr.", "response": "Cats."}',
        ordered=False,
    ),
    Format(
        "alpaca-preference",
        "LLaMA-Factory's preferences after an instruction, with input, system and history as in alpaca.",
        keys=("instruction", "chosen", "rejected"),
        optional=("input", *CONTEXT),
        convert=pairs.after_instruction(),
        example='{"instruction": "Greet me.", "input": "", "chosen": "Good morning!", "rejected": "No."}',
    ),
    Format(
        "sharegpt-preference",
        "LLaMA-Factory's preferences after a conversation; chosen and rejected are turns or text.",
        keys=("conversations", "chosen", "rejected"),
        optional=SYSTEM,
        convert=pairs.after_conversation("conversations"),
        example='{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"}, '
        '"rejected": {"from": "gpt", "value": "What?"}}',
    ),
    Format(
        "messages-preference",
        "axolotl's chat_template preferences: turns that end with the user; chosen and rejected are turns or text.",
        keys=("messages", "chosen", "rejected"),
        optional=SYSTEM,
        convert=pairs.after_conversation("messages"),
        fits=_are_single_answers,
        requirement=", the last two one turn or text each",
        example='{"messages": [{"role": "user", "content": "Hi"}], '
        '"chosen": {"role": "assistant", "content": "Hello!"}, "rejected": {"role": "assistant", "content": "What?"}}',
    ),
    Format(
        "question-preference",
        "Orca's preferences (axolotl's chatml.intel): a question, and a system message if there is one.",
        keys=("question", "chosen", "rejected"),
        optional=CONTEXT,
        convert=pairs.after("question"),
        example='{"system": "Be kind.", "question": "Greet me.", "chosen": "Good morning!", "rejected": "No."}',
    ),
    Format(
        "argilla",
        "axolotl's chatml.argilla: an instruction with two responses.",
        keys=("instruction", "chosen_response", "rejected_response"),
        optional=("input", *CONTEXT),
        convert=pairs.after_instruction(("chosen_response", "rejected_response")),
        example='{"instruction": "Greet me.", "chosen_response": "Good morning!", "rejected_response": "No."}',
    ),
    Format(
        "ms-swift",
        "ms-swift's preferences: a conversation, and a worse answer than its last one.",
        keys=("messages", "rejected_response"),
        optional=SYSTEM,
        convert=pairs.answered_conversation("rejected_response"),
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
        '"rejected_response": "What?"}',
    ),
    Format(
        "ms-swift-messages",
        "ms-swift's preferences as two conversations that are the same up to their last answers, the better one first.",
        keys=("messages", "rejected_messages"),
        optional=SYSTEM,
        convert=pairs.answered_conversation("rejected_messages"),
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
        '"rejected_messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}]}',
    ),
    Format(
        "openai",
        "OpenAI's preferences: `input.messages` ends with the user; each output is a list with the assistant's turn.",
        keys=("input", "preferred_output", "non_preferred_output"),
        optional=(),
        convert=pairs.openai,
        fits=lambda fields: isinstance(fields["input"], dict),
        example='{"input": {"messages": [{"role": "user", "content": "Hi"}]}, '
        '"preferred_output": [{"role": "assistant", "content": "Hello!"}], '
        '"non_preferred_output": [{"role": "assistant", "content": "What?"}]}',
    ),
    Format(
        "alpaca-ranked",
        "LLaMA-Factory's older rankings: alpaca with a list of outputs, best first.",
        keys=("instruction", "output"),
        optional=("input", *CONTEXT),
        convert=rankings.best_first,
        fits=lambda fields: isinstance(fields["output"], list),
        requirement=", a list of outputs",
        example='{"instruction": "Greet me.", "input": "", "output": ["Good morning!", "Hi.", "No."]}',
    ),
    Format(
        "ultrafeedback",
        "UltraFeedback's rated completions: `fine-grained_score`, the mean of the ratings, or else `overall_score`.",
        keys=("instruction", "completions"),
        optional=(),
        convert=rankings.ultrafeedback,
        example='{"instruction": "Greet me.", "completions": [{"response": "No.", "overall_score": 2}, '
        '{"response": "Good morning!", "overall_score": 9}]}',
        keeps_positions=True,
    ),
    Format(
        "rated",
        "HelpSteer's rated answers, one per row; the rows with the same prompt become one ranking.",
        keys=("prompt",),
        optional=(*RESPONSES, *rankings.RATINGS, *CONTEXT),
        convert=rankings.rated,
        fits=_is_rated,
        requirement=f", a response and one of {listed(rankings.RATINGS)}",
        example='{"prompt": "Greet me.", "response": "Good morning!", "helpfulness": 4}',
    ),
    *VERDICTS,
)
BY_NAME = {entry.name: entry for entry in FORMATS}
