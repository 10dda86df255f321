"""Right answers to prompts, from a column of `data.prompts`, for rewards with `source: exact`."""

from collections.abc import Mapping

from lowrank_rlhf.config.rewards import RewardTerm
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import kind
from lowrank_rlhf.errors import UserError


def right_answers(data: PromptData, rewards: Mapping[str, RewardTerm]) -> dict[str, dict[str, str]]:
    """Return for each reward with a `column` the right answers by prompt id.

    Raises `UserError` for a row without text or number in the column.
    """
    return {name: _column(data, name, term.column) for name, term in rewards.items() if term.column is not None}


def _column(data: PromptData, name: str, column: str) -> dict[str, str]:
    found = {}
    for prompt in (*data.training, *data.held_out):
        value = data.fields.get(prompt.id, {}).get(column)
        if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
            fields = ", ".join(data.fields.get(prompt.id, {})) or "none"
            problem = f"no right answer under {column!r}" if value is None else f"{column!r} is {kind(value)}"
            raise UserError(
                f"ppo.rewards.{name}.column: {data.places[prompt.id]}: {problem}. Write text or a number; the row's "
                f"columns are {fields}"
            )
        found[prompt.id] = str(value)
    return found
