"""The model card of an export: what it is, how to use it, where it comes from, and what it is not good for."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache
from yaml import YAMLError

from lowrank_rlhf import __version__
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.data.prompts import BUILTIN
from lowrank_rlhf.reports.alarms import alarms
from lowrank_rlhf.reports.format import Table, algorithm
from lowrank_rlhf.reports.page import markdown_table
from lowrank_rlhf.reports.tables import caveat, comparison, details, headline
from lowrank_rlhf.run.directory import RunDir, read_json, sha256
from lowrank_rlhf.stages import STAGES

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_FILES = {".gguf", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".yaml", ".txt", ".safetensors", ".py"}
_TITLES = {
    "merged": "{role} model of run “{run}”",
    "adapters": "adapters of run “{run}”",
    "reward": "reward model of run “{run}”",
}
_PIPELINE_TAGS = {"merged": "text-generation", "reward": "text-classification"}
_ROLES = {"policy": "aligned ({})", "sft": "fine-tuned (SFT)"}
_SFT = {"train": "supervised fine-tuning", "adapter": "an adapter made elsewhere", "base": "the bare base"}
_COLUMNS = {
    "policy": "This is the model called “aligned (after)” in the figures below.",
    "sft": "This is the model called “SFT (before)” in the figures below, not the aligned one.",
}


@dataclass(frozen=True)
class Exported:
    """What a folder holds."""

    what: str
    """`merged`, `adapters` or `reward`."""
    name: str
    """The folder's."""
    usage: str
    """Markdown: how to load it."""
    holds: Sequence[str]
    """The adapters that are in it, merged or not."""
    role: str | None = None
    """`policy` or `sft`, of a merged model."""
    dtype: str | None = None
    difference: Table | None = None
    """What rounding to 16 bits changed."""
    unmeasured: str | None = None
    """Why that is not known."""


def model_card(run_dir: RunDir, config: Config, exported: Exported) -> str:
    """The text of `README.md`, with the front matter that the hub reads. It names no folder of this machine."""
    marks = {stage.name: mark for stage in STAGES if (mark := run_dir.done(stage.name))}
    summaries = {name: mark["summary"] for name, mark in marks.items()}
    licence = base_licence(config.model)
    role = _ROLES.get(exported.role or "", "").format(algorithm(summaries))
    title = _TITLES[exported.what].format(role=role, run=config.name)
    made_by = _made_by(summaries, exported.holds)
    front = _front_matter(config.model, exported, licence, algorithm(summaries).lower())
    parts = [
        f"---\n{front}\n---\n\n# {title[0].upper()}{title[1:]}",
        f"Made with `lowrank_rlhf` {__version__}{made_by}, as LoRA adapters on one {_quantisation(config.model)} base.",
        _COLUMNS.get(exported.role or "", "") if comparison(summaries) else "",
        headline(summaries),
        caveat(summaries),
        "## How to use it",
        exported.usage,
        _base(config.model, licence),
        *_rounding(exported),
        *_figures(run_dir, summaries),
        markdown_table(_data(config, marks)),
        _limits(config, exported),
        _origin(run_dir, config, exported),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def without_folders(text: str) -> str:
    """The last part of what names a file of this machine; a hub id, a `scheme:name` and plain text as they are.

    Of an address, its user, password and query are left out.
    """
    if re.match(r"https?://", text):
        return re.sub(r"//[^/@]*@", "//", text).partition("?")[0]
    if "\n" in text or not re.search(r"[/\\]", text) or _SCHEME.match(text):
        return text
    path = Path(text.replace("\\", "/"))
    is_file = path.suffix.lower() in _FILES or text[0] in "/\\.~" or text[1:2] == ":" or os.path.exists(text)
    return path.name if is_file else text


def base_licence(model: ModelConfig) -> str | None:
    """The licence that the base's own card states, as far as the card is on this machine."""
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


def _made_by(summaries: Mapping[str, Mapping[str, Any]], holds: Sequence[str]) -> str:
    """`: ` and what the run has done for these adapters, or nothing."""
    words = {
        "sft": _SFT[summaries.get("sft", {}).get("source", "train")],
        "reward": "a reward model" if set(holds) - {"sft"} else None,
        "ppo": algorithm(summaries) if {"policy", "critic"} & set(holds) else None,
    }
    done = [text for stage, text in words.items() if text and stage in summaries]
    return f": {' and '.join(filter(None, (', '.join(done[:-1]), done[-1])))}" if done else ""


def _front_matter(model: ModelConfig, exported: Exported, licence: str | None, made_by: str) -> str:
    kind = ["reward-model"] if exported.what == "reward" else [made_by] if "policy" in exported.holds else ["sft"]
    on_hub = "/" in model.source and without_folders(model.source) == model.source and not _SCHEME.match(model.source)
    data = ModelCardData(
        base_model=model.source if on_hub else None,
        license=licence,
        library_name="peft" if exported.what == "adapters" else "transformers",
        pipeline_tag=_PIPELINE_TAGS.get(exported.what),
        tags=["rlhf", "lora", *kind],
    )
    return data.to_yaml().strip()


def _quantisation(model: ModelConfig) -> str:
    return {"nf4": "4-bit (NF4)", "none": "unquantised"}.get(model.quantization, model.quantization)


def _base(model: ModelConfig, licence: str | None) -> str:
    revision = f", revision `{model.revision}`" if model.revision else ""
    checksum = f", sha256 `{model.sha256}`" if model.sha256 else ""
    stated = (
        f"Its licence is {licence}; it holds for this model too."
        if licence
        else "Its licence is not recorded here: look it up at its source before you pass this model on."
    )
    return f"## Base model\n\n`{without_folders(model.source)}`{revision}{checksum}. {stated}"


def _rounding(exported: Exported) -> list[str]:
    if exported.difference:
        return [markdown_table(exported.difference)]
    return [f"## Against the run's own output\n\nNot measured: {exported.unmeasured}."] if exported.unmeasured else []


def _figures(run_dir: RunDir, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    warnings = alarms(list(run_dir.metrics.read()), summaries)
    tables = [table for table in (comparison(summaries), *details(summaries)) if table]
    listed = "".join(f"- {text}\n" for text in warnings)
    return [f"## Alarms of the run\n\n{listed}" if listed else "", *map(markdown_table, tables)]


def _data(config: Config, marks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every file that a stage read, with its hash at that time; of a data set of the hub the commit."""
    readers: dict[tuple[str, str], list[str]] = {}
    scheme, _, name = config.data.prompts.partition(":")
    if scheme == "builtin" and (builtin := BUILTIN / f"{name}.jsonl").is_file():
        readers[config.data.prompts, sha256(builtin)] = [
            stage for stage, mark in marks.items() if "data.prompts" in mark["fingerprint"]["settings"]
        ]
    for stage, mark in marks.items():
        for file, digest in mark["fingerprint"]["inputs"].items():
            if not file.startswith("adapters/"):
                readers.setdefault((without_folders(file), digest), []).append(stage)
    rows = tuple((file, digest, ", ".join(stages)) for (file, digest), stages in readers.items())
    return Table(
        "Data", "What the stages read; of a data set of the hub its commit.", ("file", "sha256", "read by"), rows
    )


def _limits(config: Config, exported: Exported) -> str:
    points = [
        f"Trained on prompts and answers of at most {config.model.max_length} tokens together, answers of at most "
        f"{config.sample.max_new_tokens}; what it does beyond that was never looked at.",
        "Nobody tested it for safety, bias or truth. It has its base's faults, and what its training data teach.",
        "The figures come from one run with one seed, and from prompts of the same kind as those it learnt from.",
    ]
    if config.rank.source == "judge" and set(exported.holds) - {"sft"}:
        points.append(
            f"Its preferences are those of a program (`{config.rank.judge}`), not of people: it has learnt what that "
            "program rewards."
        )
    if exported.what == "reward":
        points.append("Its scores compare answers to the same prompt; between prompts they mean little.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _origin(run_dir: RunDir, config: Config, exported: Exported) -> str:
    """Command, config and versions that make the same again."""
    environment = read_json(run_dir.path / "env.json") or {}
    packages = {"python": environment.get("python"), **environment.get("packages", {})}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    options = [f"--{key} {value}" for key, value in _options(exported).items() if value]
    text = dump_config(_shareable(config)).rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return (
        f"## How to make it again\n\nWith `lowrank_rlhf` {__version__}, save the config below as `run.yaml`, then:\n\n"
        "```bash\n"
        "python -m lowrank_rlhf run run.yaml\n"
        f"python -m lowrank_rlhf export {config.name} {json.dumps(exported.name)} {' '.join(options)}\n```\n\n"
        "Files in it are named without their folders. The same versions on the same kind of processor give the same "
        f"numbers: {versions or 'not recorded'}.\n\n"
        f"<details><summary>run.yaml</summary>\n\n{fence}yaml\n{text}\n{fence}\n\n</details>"
    )


def _options(exported: Exported) -> dict[str, str | None]:
    return {"what": exported.what, "role": exported.role, "dtype": exported.dtype}


def _shareable(config: Config) -> Config:
    return Config.model_validate(_shortened(config.model_dump(mode="json")))


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_shortened(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value
