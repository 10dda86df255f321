"""All data that a config names, each file read once."""

from functools import cached_property

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons, without_prompts
from lowrank_rlhf.data.prompts import PromptData, load_prompt_data


class RunData:
    """What `data.prompts` and `rank.dataset` hold, read when it is first asked for and kept."""

    def __init__(self, config: Config):
        self._config = config

    @cached_property
    def prompts(self) -> PromptData:
        """Prompts and demonstrations, split. Raises `UserError` that names the row at fault."""
        return load_prompt_data(self._config.data, self._config.seed)

    @cached_property
    def comparisons(self) -> ComparisonData | None:
        """Comparisons but for held-out prompts; None without `rank.source: dataset`. Raises `UserError` likewise."""
        rank = self._config.rank
        if rank.dataset is None:
            return None
        found = load_comparisons(rank.dataset, rank.format, self._config.data.skip_bad_rows)
        return without_prompts(found, self.prompts.held_out)
