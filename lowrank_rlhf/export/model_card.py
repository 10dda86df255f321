"""The model card of an export: its contents, its use, its figures and limits, and how to reproduce it."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache
from yaml import YAMLError

from lowrank_rlhf import __version__
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.data.readers.sources import BUILTIN
from lowrank_rlhf.export.usage_snippets import card_environment
from lowrank_rlhf.reports.alarms import find_alarms
from lowrank_rlhf.reports.benchmarks import yardstick_table
from lowrank_rlhf.reports.format import Table, algorithm
from lowrank_rlhf.reports.locale import ENGLISH
from lowrank_rlhf.reports.story import caveats, headline
from lowrank_rlhf.reports.tables import comparison, details
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_json, sha256
from lowrank_rlhf.run.results import MARKS, DoneMark, Results, StageResult
from lowrank_rlhf.sources.measured_quality import quantization_cost

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_FILES = {".gguf", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".yaml", ".txt", ".safetensors", ".py"}
_TITLES = {
    "merged": "{role} model of run “{run}”",
    "adapters": "Adapters of run “{run}”",
    "reward": "Reward model of run “{run}”",
    "gguf": "{role} model of run “{run}”, as a GGUF file",
}
_PIPELINE_TAGS = {"merged": "text-generation", "gguf": "text-generation", "reward": "text-classification"}
_ROLES = {"policy": "Aligned ({})", "sft": "Fine-tuned (SFT)"}
_SFT = {"train": "supervised fine-tuning", "adapter": "an existing adapter", "base": "the base without fine-tuning"}
_COLUMNS = {
    "policy": "This is the model in the column “aligned (after)” of the figures below.",
    "sft": "This is the model in the column “SFT (before)” of the figures below, not the aligned one.",
}
_QUANTIZATION = {"nf4": "4-bit (NF4)", "int8": "8-bit", "gguf": "GGUF-quantised", "none": "unquantised"}

Marks = Mapping[str, DoneMark[StageResult]]


@dataclass(frozen=True)
class Exported:
    """Contents of an exported folder."""

    what: str
    """`merged`, `adapters`, `reward` or `gguf`."""
    name: str
    """Name of the folder."""
    usage: str
    """Markdown: how to load it."""
    adapters: Sequence[str]
    """Adapters in it, merged or not."""
    role: str | None = None
    """`policy` or `sft`, of a merged model or a GGUF file."""
    dtype: str | None = None
    difference: Table | None = None
    """Effect of the file's number format."""
    unmeasured: str | None = None
    """Reason why that effect is not known."""
    type: str | None = None
    """Number format of a GGUF file, or `lora`."""


def model_card(run_dir: RunDir, config: Config, exported: Exported) -> str:
    """Return the text of `README.md` with the hub's front matter. It names no folder of this machine."""
    marks: Marks = {stage: mark for stage in MARKS if (mark := run_dir.mark(stage))}
    results = Results.model_validate({name: mark.result for name, mark in marks.items()})
    licence, made_by = base_licence(config.model), algorithm(results)
    compared = comparison(results, ENGLISH)
    alarms = find_alarms(list(run_dir.metrics.read()), results)
    lines = (_COLUMNS.get(exported.role or "", "") if compared else "", headline(results, ENGLISH, alarms))
    tables = (compared, yardstick_table(results, ENGLISH), *details(results, ENGLISH), _data(config, marks))
    config_yaml = dump_config(_shareable(config)).rstrip()
    return (
        card_environment()
        .get_template("card.md.j2")
        .render(
            front=_front_matter(config.model, exported, licence, made_by.lower()),
            title=_TITLES[exported.what].format(
                role=_ROLES.get(exported.role or "", "").format(made_by), run=config.name
            ),
            version=__version__,
            made_by=_made_by(results, exported.adapters),
            quantization=_QUANTIZATION[config.model.quantization],
            cost=quantization_cost(config.model),
            lines=[line for line in (*lines, *caveats(results, ENGLISH)) if line],
            usage=exported.usage.strip(),
            base=config.model.model_copy(update={"source": without_folders(config.model.source)}),
            licence=licence,
            difference=exported.difference,
            unmeasured=exported.unmeasured,
            alarms=[alarm.text(ENGLISH) for alarm in alarms],
            tables=[table for table in tables if table],
            max_length=config.model.max_length,
            max_new_tokens=config.sample.max_new_tokens,
            judge=config.ranking_judge if set(exported.adapters) - {"sft"} else None,
            reward=exported.what == "reward",
            run=config.name,
            folder=json.dumps(exported.name),
            options=" ".join(_options(exported)),
            versions=_versions(run_dir),
            config=config_yaml,
            fence="`" * max(3, 1 + max(map(len, re.findall("`+", config_yaml)), default=0)),
        )
    )


def without_folders(text: str) -> str:
    """Return the last part of a path of this machine; a hub id, a `scheme:name` and plain text are returned unchanged.

    An address loses its user, password and query.
    """
    if re.match(r"https?://", text):
        return re.sub(r"//[^/@]*@", "//", text).partition("?")[0]
    if "\n" in text or not re.search(r"[/\\]", text) or _SCHEME.match(text):
        return text
    path = Path(text.replace("\\", "/"))
    is_file = path.suffix.lower() in _FILES or text[0] in "/\\.~" or text[1:2] == ":" or os.path.exists(text)
    return path.name if is_file else text


def base_licence(model: ModelConfig) -> str | None:
    """Return the licence on the base's own card, if the card is on this machine."""
    card = Path(model.source) / "README.md"
    if not card.is_file():
        try:
            cached = try_to_load_from_cache(model.source, "README.md", revision=model.revision)
        except ValueError:  # not a hub id
            return None
        if not isinstance(cached, str):
            return None
        card = Path(cached)
    try:
        found = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, YAMLError):
        return None
    return found if isinstance(found, str) else None


def _made_by(results: Results, adapters: Sequence[str]) -> str:
    """Return the training behind these adapters, such as `supervised fine-tuning, a reward model and PPO`."""
    words = (
        _SFT[results.sft.source] if results.sft else None,
        "a reward model" if results.reward and set(adapters) - {"sft"} else None,
        algorithm(results) if results.ppo and {"policy", "critic"} & set(adapters) else None,
    )
    done = [text for text in words if text]
    return " and ".join(filter(None, (", ".join(done[:-1]), *done[-1:])))


def _front_matter(model: ModelConfig, exported: Exported, licence: str | None, made_by: str) -> str:
    kind = made_by if "policy" in exported.adapters else "sft"
    on_hub = "/" in model.source and without_folders(model.source) == model.source and not _SCHEME.match(model.source)
    data = ModelCardData(
        base_model=model.source if on_hub else None,
        license=licence,
        library_name={"adapters": "peft", "gguf": "gguf"}.get(exported.what, "transformers"),
        pipeline_tag=_PIPELINE_TAGS.get(exported.what),
        tags=["rlhf", "lora", "reward-model" if exported.what == "reward" else kind],
    )
    text: str = data.to_yaml()
    return text.strip()


def _data(config: Config, marks: Marks) -> Table:
    """Return every file that a stage read with its hash at that time; for a data set of the hub the commit."""
    readers: dict[tuple[str, str], list[str]] = {}
    scheme, _, name = config.data.prompts.partition(":")
    if scheme == "builtin" and (builtin := BUILTIN / f"{name}.jsonl").is_file():
        readers[config.data.prompts, sha256(builtin)] = [
            stage for stage, mark in marks.items() if "data.prompts" in mark.fingerprint.settings
        ]
    for stage, mark in marks.items():
        for file, digest in mark.fingerprint.inputs.items():
            if not file.startswith("adapters/"):
                readers.setdefault((without_folders(file), digest), []).append(stage)
    rows = tuple((file, digest, ", ".join(stages)) for (file, digest), stages in readers.items())
    lead = "Inputs of the stages; for a data set of the hub its commit."
    return Table("Data", lead, ("file", "sha256", "read by"), rows)


def _versions(run_dir: RunDir) -> str:
    """Return the packages that the run was made with."""
    environment = read_json(run_dir.run / "env.json") or {}
    packages = {"python": environment.get("python"), **environment.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


def _options(exported: Exported) -> Iterator[str]:
    """Yield the options of `export` that make this folder."""
    for name, value in (
        ("what", exported.what),
        ("role", exported.role),
        ("dtype", exported.dtype),
        ("type", exported.type),
    ):
        if value:
            yield f"--{name} {value}"


def _shareable(config: Config) -> Config:
    return Config.model_validate(_shortened(config.model_dump(mode="json")))


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_shortened(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value
