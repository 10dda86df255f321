"""Fingerprints of stages, the settings and inputs of their results, and their differences. Imports no torch."""

import json
from typing import Any

from lowrank_rlhf import stages
from lowrank_rlhf.config.rewards import ENDPOINT
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.config.section import flat
from lowrank_rlhf.data.length_filter import room_for_prompts
from lowrank_rlhf.data.readers.hub import SCHEME
from lowrank_rlhf.data.readers.sources import local_file
from lowrank_rlhf.data.run_data import VALIDATION, read_commits
from lowrank_rlhf.evaluation.run_judges import followed_judges
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.results import Fingerprint
from lowrank_rlhf.sources.fetch import model_identity
from lowrank_rlhf.stages import Stage

# Settings that name files outside the run: their contents matter as well as their names.
_OUTSIDE = ("data.prompts", "sft.adapter", "rank.dataset")
# Checksum of the model's files, if they are on this machine, in addition to its settings.
_MODEL_FILES = "model files"
# Settings of other sections, which some configurations of a stage depend on.
_ROOM = "room for a prompt (model.max_length less sample.max_new_tokens)"
_FOLLOWED = "evaluate.second_judge, which ppo follows"
_ENDPOINT = "rank.endpoint"
_OF_JUDGES = tuple(f"{_ENDPOINT}.{name}" for name in ("ask", "template", "rubric"))  # a reward has its own rubric
# Missing in done marks of older versions: unknown values are not differences.
_NOT_ALWAYS_KNOWN = (_MODEL_FILES, _ROOM, _FOLLOWED, "rank.minimum_rankings")
# Only these depend on the division of the held-out prompts.
_USE_HELD_OUT = ("ppo", "evaluate")
# Only later rounds mix answers of two models.
_SFT_SHARE = "sample.sft_share"


def fingerprint(stage: Stage, config: Config, inputs: dict[str, str]) -> Fingerprint:
    """Return the stage's fingerprint: settings under dotted keys, and hashes or commits of its inputs."""
    settings: dict[str, Any] = {}
    for key in stage.settings:
        settings |= flat(key, _setting(config, key))
    settings |= _of_other_sections(stage, config)
    ignored = [*([] if stage.kind in _USE_HELD_OUT else [VALIDATION]), *([_SFT_SHARE] if stage.round == 1 else [])]
    kept = {key: value for key, value in settings.items() if key not in ignored and not stages.is_pace(key)}
    if stage.kind == "rank" and config.rank.judge != ENDPOINT:  # then only other stages ask it
        kept = {key: value for key, value in kept.items() if not _of_endpoint(key)}
    return Fingerprint(settings=kept, inputs=inputs)


def current_fingerprint(stage: Stage, config: Config, run_dir: RunDir) -> Fingerprint:
    """Return the fingerprint that the stage would have if run now, with the current inputs in the run folder."""
    found = fingerprint(stage, config, _inputs(stage, config, run_dir))
    if "model" in stage.settings:
        found.settings[_MODEL_FILES] = model_identity(config.model)
    return found


def differences(old: Fingerprint, new: Fingerprint, finished: bool = False) -> tuple[str, ...]:
    """Return one line for each setting and input that differs between two fingerprints.

    For a `finished` stage the judge of PPO's curves is no difference: no weight depends on it.

    A setting missing in `old`, which an older version wrote, counts as its default; older versions did not divide the
    held-out prompts, as `data.validation: 0`. An endpoint that the stage no longer asks is no difference by itself: the
    judge or reward that asked it is one, and older versions recorded it for stage rank always. A hub data set without
    a known commit in one of them is no difference.
    """
    before, after, defaults = old.settings, new.settings, Config.defaults()
    lines = [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in before | after
        if before.get(key, defaults.get(key)) != after.get(key)  # compared as numbers: 32 equals 32.0
        and not (key in _NOT_ALWAYS_KNOWN and None in (before.get(key), after.get(key)))
        and not (key == _FOLLOWED and finished)
        and not (_of_endpoint(key) and key not in after)
        and not (key == VALIDATION and key not in before and after[key] == 0)
    ]
    before, after = old.inputs, new.inputs
    for name in before | after:
        not_known = name.startswith(SCHEME) and not (name in before and name in after)
        if before.get(name) != after.get(name) and not not_known:
            how = "is no longer read" if name not in after else "is read now" if name not in before else "has changed"
            lines.append(f"{name} {how}")
    return tuple(lines)


def _of_other_sections(stage: Stage, config: Config) -> dict[str, Any]:
    """Return the settings of other sections that the stage depends on.

    The length of answers determines which demonstrations are too long; PPO's evaluations use the second judge.
    """
    found: dict[str, Any] = {}
    if stage.kind == "sft" and config.sft.source == "train" and config.data.skip_too_long:
        found[_ROOM] = room_for_prompts(config)
    if stage.kind == "ppo":
        if config.ppo.asking_endpoint:
            asked = flat(_ENDPOINT, _setting(config, _ENDPOINT))
            found |= {key: value for key, value in asked.items() if key not in _OF_JUDGES}
        found[_FOLLOWED] = followed_judges(config).get("second_judge", "none")
    return found


def _of_endpoint(key: str) -> bool:
    return key == _ENDPOINT or key.startswith(f"{_ENDPOINT}.")


def _inputs(stage: Stage, config: Config, run_dir: RunDir) -> dict[str, str]:
    outside, commits = {}, read_commits(run_dir)
    for key in _OUTSIDE:
        named = _setting(config, key)
        if not named or not any(key == own or key.startswith(f"{own}.") for own in stage.settings):
            continue
        if named in commits:
            outside[named] = commits[named]
        elif (path := local_file(named)).exists():
            outside[named] = sha256(path)
    return run_dir.hashes(stage.reads) | outside


def _setting(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _shown(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "(not set)"
    text = json.dumps(settings[key], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
