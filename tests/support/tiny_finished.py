"""A finished run without training, on a tiny model: random adapters, invented figures, real files."""

import json
from pathlib import Path
from typing import Any

from synthetic_run import all_summaries
from tiny import randomise
from tiny_run import make_config, make_session, separable, write_prompts, write_ranked

from lowrank_rlhf import stages
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.fingerprint import fingerprint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256, write_json_atomic
from lowrank_rlhf.run.outputs import file_sums
from lowrank_rlhf.session import Session

ABOUT_REWARD = {"schema": 1, "pooling": "last", "layers": 2, "score_mean": 0.4, "score_std": 1.7, "weak": None}
ROLES = {"sft": Role.REFERENCE, "policy": Role.POLICY, "reward": Role.REWARD, "critic": Role.CRITIC}


def finished_run(
    model: Path, folder: Path, adapters: tuple[str, ...] = tuple(ROLES), pooling: str = "last", **changes: Any
) -> Session:
    """`folder/runs/tiny` with these adapters, each with different random weights, and the roles loaded with them.

    `changes` are those of `make_config`.
    """
    prompts = write_prompts(folder / "prompts.jsonl")
    config = make_config(model, prompts, reward__pooling=pooling, **changes)
    session = make_session(config, folder / "runs")
    session.run_dir.open(dump_config(config))
    for seed, name in enumerate(adapters):
        randomise(session.load_roles(), ROLES[name], seed)
        save_role(session.load_roles(), ROLES[name], session.run_dir.artifact(f"adapters/{name}"))
    if "reward" in adapters:
        about = ABOUT_REWARD | {"pooling": pooling, "layers": session.load_roles().head_layers}
        write_json_atomic(session.run_dir.artifact("adapters/reward") / "reward.json", about)
    write_ranked(session, *separable(4))
    _mark_done(session, config, {str(prompts): sha256(prompts)})
    return session


def _mark_done(session: Session, config: Config, outside: dict[str, str]) -> None:
    for stage in pipeline.stages_of(config):
        summary = all_summaries().get(stage.name)
        if summary:
            inputs = session.run_dir.hashes(stage.reads) | (outside if stage.name == "sft" else {})
            mark = {"fingerprint": fingerprint(stage, config, inputs).model_dump(), "summary": summary, "seconds": 1.0}
            write_json_atomic(session.run_dir.path / "done" / f"{stage.name}.json", mark)


def damage(run_dir: RunDir, name: str) -> Path:
    """Record the checksums of all outputs, as stages do, then flip one bit in the middle of an output."""
    for path in (run_dir.path / "done").iterdir():
        writes = [name for name in stages.stage(path.stem).writes if run_dir.artifact(name).exists()]
        sums = {name: found.model_dump() for name, found in file_sums(run_dir.path, writes).items()}
        write_json_atomic(path, json.loads(path.read_text(encoding="utf-8")) | {"outputs": sums})
    damaged = run_dir.artifact(name)
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    return damaged
