"""Code on a model card: a few lines that load the export without this package. Tests run them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.reports.templating import markdown_environment

_CONTENTS = {
    "sft": "the fine-tuned model",
    "policy": "the aligned model",
    "reward": "the reward model",
    "critic": "the value model of PPO",
}


def card_environment() -> Environment:
    """Return the environment of the card's templates, with filters for literals in Python and for shell words."""
    environment = markdown_environment(Path(__file__).parent / "templates")
    environment.filters["literal"] = lambda value: Markup(json.dumps(value))  # noqa: S704 - inside a code block
    environment.filters["shell"] = lambda text: Markup(shlex.quote(text))  # noqa: S704 - inside a code block
    return environment


def merged_usage(folder: str, dtype: str, config: Config) -> str:
    """Return Markdown with the code that loads a merged model, and the commands that convert it."""
    outtype = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    return _usage("merged", folder=folder, dtype=dtype, outtype=outtype, **_sampling(config))


def gguf_usage(folder: str, file: str, base: str | None, config: Config) -> str:
    """Return Markdown with the commands that run a GGUF file; `base` is the file beside it that an adapter needs."""
    return _usage("gguf", folder=folder, file=file, base=base, source=config.model.source, **_sampling(config))


def reward_usage(folder: str, reward: Mapping[str, Any]) -> str:
    """Return Markdown with the code that scores an answer.

    Args:
        folder: name of the exported folder.
        reward: `pooling`, `score_mean`, `score_std`, the end-of-turn token `eos`, and `scale_of`, the answers whose
            scores have that mean; `members` if there are several.
    """
    means = reward["members"]["means"] if "members" in reward else []
    offsets = [round(mean - fmean(means), 6) for mean in means]
    return _usage("reward", folder=folder, offsets=offsets, **{"members": None, **reward})


def scale_of(config: Config, about: Mapping[str, Any]) -> str:
    """Return which answers' scores the mean and the deviation in `reward.json` are taken over."""
    if config.rank.source == "dataset" and about.get("scores_of") == "SFT answers":  # the ranked ones are not SFT's
        return "SFT's answers to some of the run's prompts"
    return "the run's held-out answers"


def adapters_usage(folder: str, names: Sequence[str], config: Config, layers: int | None) -> str:
    """Return Markdown with the code that loads an adapter.

    Args:
        folder: name of the exported folder.
        names: adapters in it.
        config: settings of the run.
        layers: decoder layers that reward model and critic read; None without them.
    """
    best = f"{folder}/{'policy' if 'policy' in names else 'sft'}"
    return _usage(
        "adapters",
        names=[name for name in _CONTENTS if name in names],
        contents=_CONTENTS,
        quantization=config.model.quantization,
        best=best,
        gguf=config.model.source.endswith(".gguf"),
        layers=layers,
        **_sampling(config),
    )


def _sampling(config: Config) -> dict[str, Any]:
    """Return the sampling settings of `chat`, and the run's temperature if the figures were measured otherwise."""
    temperature, top_p, measured = config.chat_temperature, config.chat.top_p, config.sample.temperature
    same = (temperature, top_p) == (measured, 1)
    return {"temperature": temperature, "top_p": top_p, "measured_temperature": None if same else measured}


def _usage(what: str, **values: Any) -> str:
    return card_environment().get_template(f"usage_{what}.md.j2").render(values)
