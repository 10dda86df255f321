"""Answers that people wrote, as rows to learn from in the sft stage."""

from lowrank_rlhf.preferences.exchange import Contents, Text, answer_field, in_messages, json_line, prompt_field


def demonstrations_to_jsonl(contents: Contents) -> str:
    """Every written answer of the rankings that count, with its prompt, as `data.prompts` takes it: TRL's format of
    prompt and completion. `prompt_id` and `annotator` say where a row is from.

    If one prompt has several turns or a system message, all rows hold messages instead of text.
    """
    prompts = {prompt.id: prompt for prompt in contents.prompts}
    written = [ranking for ranking in contents.current() if ranking.written]
    talks = in_messages(prompts[ranking.prompt_id] for ranking in written)
    return "".join(
        json_line(
            {
                "prompt": _plain(prompt_field(prompts[ranking.prompt_id], talks)),
                "completion": _plain(answer_field(ranking.written or "", talks)),
                "prompt_id": ranking.prompt_id,
                "annotator": ranking.annotator,
            }
        )
        for ranking in written
    )


def _plain(text: Text) -> str | list[dict[str, str]]:
    return text if isinstance(text, str) else [message.model_dump() for message in text]
