"""Exports of a run as folders for other software: adapters, a merged 16-bit model, the reward model, the prompts."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import Splits
from lowrank_rlhf.errors import CannotFit, Stopped, UserError
from lowrank_rlhf.export.measured_difference import (
    NO_PROMPT,
    difference_table,
    output_difference,
    score_difference,
    score_table,
)
from lowrank_rlhf.export.model_card import Exported, model_card, without_folders
from lowrank_rlhf.export.usage_snippets import adapters_usage, merged_usage, reward_usage, scale_of
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import new_folder, read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest, memory
from lowrank_rlhf.run.records import Prompt, read_jsonl

if TYPE_CHECKING:
    from lowrank_rlhf.export.merged_model import Plan
    from lowrank_rlhf.models.base import Base
    from lowrank_rlhf.models.roles import Role, Roles

ADAPTERS = ("policy", "sft", "reward", "critic")
TEMPLATE = "chat_template.jinja"
_EXTRA_BYTES = 64 * 2**20  # for tokenizer and card


def export_adapters(run_dir: RunDir, config: Config, folder: Path) -> dict[str, Any]:
    """Copy the run's PEFT folders, with a card. Raises `UserError` if there are none."""
    found = [name for name in ADAPTERS if run_dir.artifact(f"adapters/{name}").is_dir()]
    if not found:
        raise UserError(f"{run_dir.path}: no adapters yet; `run` makes the first in stage sft")
    run_dir.check_outputs(*(f"adapters/{name}" for name in found))
    sources = [run_dir.artifact(f"adapters/{name}") for name in found]
    with export_to(folder, sum(path.stat().st_size for source in sources for path in source.rglob("*"))) as out:
        for source in sources:
            _refuse_links(source)
            shutil.copytree(source, out / source.name, copy_function=shutil.copyfile)
            fault_points.point(f"export: {source.name} copied")
            _name_base_without_folders(out / source.name / "adapter_config.json")
        layers = (read_record(out / "reward" / "reward.json") or {}).get("layers")
        usage = adapters_usage(folder.name, found, config, layers)
        return finish(run_dir, config, out, Exported("adapters", folder.name, usage, found)) | {"adapters": found}


def export_merged(
    roles: "Roles",
    run_dir: RunDir,
    config: Config,
    prompts: Sequence[Prompt],
    role: str,
    dtype: str,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    """Write the base with an adapter (`policy` or `sft`) merged in, as a transformers folder with a card.

    The difference to the run's own output is measured on some of the prompts. Raises `UserError` if the run has no such
    adapter, `CannotFit` if the disk is too small.
    """
    from lowrank_rlhf.export.merged_model import DTYPES, plan_merged, write_generation_config
    from lowrank_rlhf.models.adapters import fill_role
    from lowrank_rlhf.models.roles import Role

    adapter = adapter_folder(run_dir, role)
    check_target(folder)
    fill_role(roles, Role.POLICY, adapter)
    plan = plan_merged(roles.base, DTYPES[dtype])
    with export_to(folder, plan.size) as out:
        write_weights(roles, Role.POLICY, plan, out, progress, stop)
        write_generation_config(roles.base, config, out)
        write_modelfile(roles.base, config, out)
        measured, unmeasured = output_difference(roles, config, prompts, plan, out, progress)
        usage, table = merged_usage(folder.name, dtype, config), difference_table(measured)
        exported = Exported("merged", folder.name, usage, (role,), role, dtype, table, unmeasured)
        summary = {"role": role, "dtype": dtype, "difference": asdict(measured) if measured else None}
        return finish(run_dir, config, out, exported) | summary | {"unmeasured": unmeasured}


def export_reward(
    roles: "Roles",
    run_dir: RunDir,
    config: Config,
    prompts: Sequence[Prompt],
    dtype: str,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    """Write the reward model as a sequence classifier with one label, or one for each member, with a card.

    With pooling `mean` the class's output is not the score: it reads the last token only. The card has code for it.
    """
    from lowrank_rlhf.export.merged_model import DTYPES, plan_reward
    from lowrank_rlhf.models.adapters import load_role
    from lowrank_rlhf.models.roles import Role
    from lowrank_rlhf.training.reward_data import about_reward

    adapter = adapter_folder(run_dir, "reward")
    about = about_reward(adapter)
    if about.get("length_weight"):
        raise UserError(
            "export reward: the score of this model has the answer's length as an input (reward.length: use), which a "
            "sequence classifier cannot carry. Train it with reward.length=debias or ignore: --redo reward"
        )
    check_target(folder)
    load_role(roles, Role.REWARD, adapter)
    kept = ("pooling", "score_mean", "score_std", "members")  # members only if there are several
    settings: dict[str, Any] = {key: about[key] for key in kept if key in about}
    plan = plan_reward(roles, DTYPES[dtype], settings)
    with export_to(folder, plan.size) as out:
        write_weights(roles, Role.REWARD, plan, out, progress, stop)
        _end_template_with_turn(out / TEMPLATE)
        measured = score_difference(roles, run_dir, config, prompts, settings, out)
        table, unmeasured = (score_table(*measured), None) if measured else (None, NO_PROMPT)
        eos = roles.base.tokenizer.convert_ids_to_tokens(roles.base.eos)
        usage = reward_usage(folder.name, settings | {"eos": eos, "scale_of": scale_of(config, about)})
        exported = Exported("reward", folder.name, usage, ("reward",), None, dtype, table, unmeasured)
        summary = {"dtype": dtype, **settings, "layers": roles.head_layers}
        summary |= {"max_score_difference": measured[0] if measured else None, "unmeasured": unmeasured}
        return finish(run_dir, config, out, exported) | summary


def export_prompts(config: Config, prompts: Splits, folder: Path) -> dict[str, Any]:
    """Write the run's prompts as `train.parquet` and `held-out.parquet`, in verl's columns; without a card.

    OpenRLHF reads `prompt` alone. `ground_truth` is empty: a reward model scores the answers.
    """
    import pyarrow.parquet

    data = without_folders(config.data.prompts)
    splits = {"train": prompts.training, "held-out": prompts.held_out}
    with export_to(folder, 0) as out:
        for split, chosen in splits.items():
            if not chosen:  # `data.held_out` may be 0
                continue
            rows = [
                {
                    "data_source": data,
                    "prompt": [message.model_dump() for message in prompt.messages],
                    "ability": "chat",
                    "reward_model": {"style": "model", "ground_truth": ""},
                    "extra_info": {"split": split, "index": index, "id": prompt.id},
                }
                for index, prompt in enumerate(chosen)
            ]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out / f"{split}.parquet")
            fault_points.point(f"export: {split}.parquet written")
        return _written(out, "prompts") | {"prompts": {split: len(chosen) for split, chosen in splits.items()}}


def check_export(run_dir: RunDir, adapter: str, folder: Path) -> None:
    """Raise `UserError` before the model is loaded if the run has no such adapter, or the folder is not empty."""
    adapter_folder(run_dir, adapter)
    check_target(folder)


def first_prompts(run_dir: RunDir, training: Callable[[], Sequence[Prompt]]) -> Sequence[Prompt]:
    """Return the ranked prompts if there are any, else the training prompts.

    A data set of comparisons may have no training prompts, because its answers are read and not sampled.
    """
    path = run_dir.artifact("prompts.jsonl")
    run_dir.check_outputs("prompts.jsonl", "answers.jsonl")
    return list(read_jsonl(path, Prompt)) if path.is_file() else training()


def write_modelfile(base: "Base", config: Config, out: Path, model: str = ".", adapter: str | None = None) -> None:
    """Write the Modelfile, and into the tokenizer's settings if it adds `bos_token`: without, Ollama guesses."""
    from lowrank_rlhf.export.ollama import modelfile
    from lowrank_rlhf.sources.chat_template import render
    from lowrank_rlhf.sources.tokenizer import added_first

    tokenizer, settings = base.tokenizer, out / "tokenizer_config.json"
    added, eos = added_first(tokenizer), str(tokenizer.convert_ids_to_tokens(base.eos))
    (out / "Modelfile").write_text(
        modelfile(partial(render, tokenizer), added, eos, config, model, adapter), encoding="utf-8"
    )
    if settings.is_file() and tokenizer.bos_token and added in ("", tokenizer.bos_token):
        write_json_atomic(settings, json.loads(settings.read_text("utf-8")) | {"add_bos_token": bool(added)})


def adapter_folder(run_dir: RunDir, name: str) -> Path:
    """Return the run's folder of an adapter. Raises `UserError` if there is none, or if it is damaged."""
    path = run_dir.artifact(f"adapters/{name}")
    if path.is_dir():
        run_dir.check_outputs(f"adapters/{name}")
        return path
    existing = [other for other in ADAPTERS if run_dir.artifact(f"adapters/{other}").is_dir()]
    raise UserError(
        f"{run_dir.path}: no adapter `{name}` yet; it has {', '.join(existing) or 'none'}. Resume the run to make it"
    )


def _refuse_links(folder: Path) -> None:
    """Refuse symbolic links: exports are shared, and a link could copy any file of this machine into one."""
    links = [path for path in (folder, *folder.rglob("*")) if path.is_symlink()]
    if links:
        raise UserError(f"{links[0]}: is a link, and only the run's own files are exported; put a copy in its place")


def check_target(folder: Path) -> None:
    """Raise `UserError` unless the folder is new or empty."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: exists already and is not empty; nothing is overwritten: name another folder")


@contextmanager
def export_to(folder: Path, size: int) -> Iterator[Path]:
    """Create a folder for `size` bytes of weights, which appears whole or not at all."""
    check_target(folder)
    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size + _EXTRA_BYTES:
        raise CannotFit(f"{folder}: needs {memory(size + _EXTRA_BYTES)} of disk, and {memory(free)} are free there")
    try:
        with new_folder(folder) as out:
            yield out
    except OSError as error:
        if error.filename and not _is_of(folder.absolute(), Path(error.filename).absolute()):
            raise  # a file of the run
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _is_of(folder: Path, path: Path) -> bool:
    """Return True for the folder, its unfinished form, what is in them, and the folders above."""
    unfinished = folder.with_name(f".{folder.name}.")
    return path in (folder, *folder.parents) or str(path).startswith((f"{folder}{os.sep}", str(unfinished)))


def write_weights(roles: "Roles", role: "Role", plan: "Plan", out: Path, progress: Progress, stop: StopRequest) -> None:
    """Write the planned model with a progress bar. Raises `Stopped` on request."""
    from lowrank_rlhf.export.merged_model import write_model

    with progress.track("export", len(plan.tensors), "tensors") as bar:

        def advance() -> None:
            bar.advance()
            if stop.requested:
                raise Stopped("Stopped; the unfinished export was deleted.")

        write_model(roles, role, plan, out, advance)


def finish(run_dir: RunDir, config: Config, out: Path, exported: Exported) -> dict[str, Any]:
    """Write the card and return the summary that all exports share."""
    (out / "README.md").write_text(model_card(run_dir, config, exported), encoding="utf-8")
    fault_points.point("export: card written")
    return _written(out, exported.what)


def _written(out: Path, what: str) -> dict[str, Any]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        "what": what,
        "bytes": sum(path.stat().st_size for path in files),
        "files": [path.relative_to(out).as_posix() for path in files],
    }


def _end_template_with_turn(path: Path) -> None:
    """Let the folder's chat template drop the white space after a last answer: the score is read at its end of turn."""
    if path.is_file():
        template = path.read_text(encoding="utf-8")
        ending = "{{ text if add_generation_prompt else text.rstrip() }}"
        path.write_text(f"{{% set text %}}{template}{{% endset %}}{ending}", encoding="utf-8")


def _name_base_without_folders(path: Path) -> None:
    """Strip folders from the base's name in a copied adapter: they would reveal paths of this machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    source = config.get("base_model_name_or_path")
    if isinstance(source, str) and without_folders(source) != source:
        write_json_atomic(path, config | {"base_model_name_or_path": without_folders(source)})
