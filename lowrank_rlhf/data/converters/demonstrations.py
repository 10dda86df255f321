"""Convert rows with a prompt and at most one response to imitate."""

from collections.abc import Sequence

from lowrank_rlhf.data.converters.prompts import in_context, instruction_of, prompt_of
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.readers.rows import Row, listed, row_error, text_field
from lowrank_rlhf.data.turns import Turns, answer_text, conversation, ends_with_user, split_answer
from lowrank_rlhf.run.records import Message

RESPONSES = ("response", "completion")


def prompt_completion(row: Row) -> Example:
    """Convert a prompt, optionally with a response."""
    prompt = prompt_of(row, "prompt")
    return Example(prompt=prompt, response=_response(row, prompt), id=_identifier(row))


def messages(row: Row) -> Example:
    """Convert a conversation of role and content; without a last answer it may have a response of its own."""
    turns = conversation(row, '"messages"', row.fields["messages"])
    if turns[-1].role == "assistant":
        if any(row.fields.get(key) is not None for key in RESPONSES):
            raise row_error(
                row, "answer_twice", '"messages" ends with the assistant and "response" is present too. Keep one'
            )
        return _answered(row, "messages", turns)
    prompt = in_context(row, ends_with_user(row, '"messages"', turns))
    return Example(prompt=prompt, response=_response(row, prompt), id=_identifier(row))


def sharegpt(row: Row) -> Example:
    """Convert a conversation of from and value."""
    turns = conversation(row, '"conversations"', row.fields["conversations"])
    if turns[-1].role == "assistant":
        return _answered(row, "conversations", turns)
    return Example(prompt=in_context(row, ends_with_user(row, '"conversations"', turns)))


def alpaca(row: Row) -> Example:
    """Convert an instruction with input and output."""
    return Example(prompt=instruction_of(row), response=text_field(row, '"output"', row.fields["output"]))


def question(row: Row) -> Example:
    """Convert a question with a response or an answer."""
    prompt = prompt_of(row, "question")
    return Example(prompt=prompt, response=_response(row, prompt, ("response", "answer")))


def dolly(row: Row) -> Example:
    """Convert an instruction with a response; a non-empty context is appended to the instruction."""
    fields = {**row.fields, "input": row.fields.get("context")}
    prompt = instruction_of(row._replace(fields=fields))
    return Example(prompt=prompt, response=text_field(row, '"response"', row.fields["response"]))


def _answered(row: Row, key: str, turns: Sequence[Message]) -> Example:
    prompt, answer = split_answer(row, f'"{key}"', turns)
    answer = text_field(row, f"{key}[{len(turns) - 1}].content", answer)
    return Example(prompt=in_context(row, prompt), response=answer, id=_identifier(row) if key == "messages" else None)


def _response(row: Row, prompt: Turns, keys: Sequence[str] = RESPONSES) -> str | None:
    """Return the response to imitate, if any."""
    given = [key for key in keys if row.fields.get(key) is not None]
    if len(given) > 1:
        raise row_error(row, "both_present", "{keys} are both present. Keep one", keys=listed(given))
    return answer_text(row, given[0], prompt) if given else None


def _identifier(row: Row) -> str | None:
    value = row.fields.get("id")
    if value is None:
        return None
    return str(value) if type(value) is int else text_field(row, '"id"', value)
