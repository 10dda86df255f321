"""Formats of rows with two answers and a verdict, a part of the table of formats."""

from lowrank_rlhf.data.converters import verdicts
from lowrank_rlhf.data.converters.prompts import CONTEXT
from lowrank_rlhf.data.format_entry import Format

VERDICTS = (
    Format(
        "winner",
        "Two responses and a winner: model_a, model_b or tie.",
        keys=("prompt", "response_a", "response_b", "winner"),
        optional=CONTEXT,
        convert=verdicts.two_answers("prompt", "response_a", "response_b", "winner", verdicts.WINNERS),
        example='{"prompt": "Greet me.", "response_a": "Hi.", "response_b": "No.", "winner": "model_a"}',
        keeps_positions=True,
    ),
    Format(
        "arena",
        "Chatbot Arena's conversations and winner; those that differ before the last answer are left out.",
        keys=("conversation_a", "conversation_b", "winner"),
        optional=(),
        convert=verdicts.arena,
        example='{"conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
        '"conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}], '
        '"winner": "model_a"}',
        keeps_positions=True,
    ),
    Format(
        "arena-lists",
        "Chatbot Arena's human preferences: lists of prompts and answers, as JSON, and one of three winners.",
        keys=("prompt", "response_a", "response_b", *verdicts.ONE_HOT),
        optional=(),
        convert=verdicts.arena_lists,
        example=r'{"prompt": "[\"Hi\"]", "response_a": "[\"Hello!\"]", "response_b": "[\"What?\"]", '
        '"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}',
        keeps_positions=True,
    ),
    Format(
        "auto-j",
        "Auto-J's pairs: label 0 for the first response, 1 for the second, 2 for a tie.",
        keys=("prompt", "response 1", "response 2", "label"),
        optional=CONTEXT,
        convert=verdicts.two_answers("prompt", "response 1", "response 2", "label", {"0": 1, "1": 2, "2": 0}),
        example='{"prompt": "Greet me.", "response 1": "Hi.", "response 2": "No.", "label": 0}',
        keeps_positions=True,
    ),
    Format(
        "pku-saferlhf",
        "PKU-SafeRLHF's pairs, ordered by `better_response_id` (helpfulness), not by safety.",
        keys=("prompt", "response_0", "response_1", "better_response_id"),
        optional=CONTEXT,
        convert=verdicts.two_answers("prompt", "response_0", "response_1", "better_response_id", {"0": 1, "1": 2}),
        example='{"prompt": "Greet me.", "response_0": "Hi.", "response_1": "No.", "better_response_id": 0}',
        keeps_positions=True,
    ),
    Format(
        "shp",
        "Stanford Human Preferences: labels 1 if the first answer had more votes, else 0.",
        keys=("history", "human_ref_A", "human_ref_B", "labels"),
        optional=(),
        convert=verdicts.two_answers("history", "human_ref_A", "human_ref_B", "labels", {"1": 1, "0": 2}),
        example='{"history": "Greet me.", "human_ref_A": "Hi.", "human_ref_B": "No.", "labels": 1}',
        keeps_positions=True,
    ),
    Format(
        "tldr",
        "OpenAI's comparisons of summaries (TL;DR): choice 0 for the first, 1 for the second.",
        keys=("info", "summaries", "choice"),
        optional=(),
        convert=verdicts.tldr,
        example='{"info": {"title": "A cat", "post": "It purrs all day."}, '
        '"summaries": [{"text": "A cat purrs."}, {"text": "Dogs."}], "choice": 0}',
        keeps_positions=True,
    ),
    Format(
        "helpsteer3",
        "HelpSteer3's preferences: overall_preference from -3, the first response is much better, to 3, the second is.",
        keys=("context", "response1", "response2", "overall_preference"),
        optional=CONTEXT,
        convert=verdicts.helpsteer3,
        example='{"context": [{"role": "user", "content": "Greet me."}], "response1": "Hi.", "response2": "No.", '
        '"overall_preference": -2}',
        keeps_positions=True,
    ),
)
