"""The last stage: SFT against the policy on held-out prompts, and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_rlhf.evaluation.compare import Answers, Contest, ranking_judge, scored, verdicts
from lowrank_rlhf.evaluation.run_judges import open_judge
from lowrank_rlhf.maths.statistics import Floats, bootstrap_interval, mean_shift, wins
from lowrank_rlhf.maths.text import distinct_n, top_opener
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_role
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.reports.format import DISTINCT, OPENER
from lowrank_rlhf.reports.render import summary_message, write_report
from lowrank_rlhf.run.files import append_line
from lowrank_rlhf.run.records import Sample
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import STAGES
from lowrank_rlhf.training.reward_data import about_reward
from lowrank_rlhf.training.rollout import RewardScale

Rows = list[dict[str, Any]]


def run(session: Session) -> dict[str, Any]:
    """Make `eval.jsonl`, `report.html` and `report.md`."""
    roles, run_dir, work = session.roles, session.run_dir, session.work("evaluate")
    artifact = run_dir.artifact
    about = about_reward(artifact("adapters/reward"))
    load_role(roles, Role.REFERENCE, artifact("adapters/sft"))
    load_role(roles, Role.POLICY, artifact("adapters/policy"))
    load_role(roles, Role.REWARD, artifact("adapters/reward"))
    scale = RewardScale(about["pooling"], about["score_mean"], about["score_std"])
    with session.progress.track("evaluate", 2 * len(session.prompts[1]), "answers") as bar:
        contest = Contest.against_sft(session, None, scale, bar=bar)
        policy = contest.meet(session, bar)
    judges = _judges(session)
    rows = _rows(session, contest, policy, judges)
    eval_path = work / "eval.jsonl"
    eval_path.unlink(missing_ok=True)
    for row in rows:
        append_line(eval_path, row)
    summary = _summary(session, contest, policy.samples, rows, judges)
    marks = {stage.name: run_dir.done(stage.name) for stage in STAGES}
    summaries = {name: mark["summary"] for name, mark in marks.items() if mark} | {"evaluate": summary}
    write_report(run_dir.path, summaries, rows, work)
    return {**summary, "message": summary_message(run_dir.path, summaries, rows, run_dir.artifact("report.html"))}


def _judges(session: Session) -> dict[str, Judge]:
    """Those there are of `judge`, which ranked the answers, and `second`."""
    first, name = ranking_judge(session), session.config.evaluate.second_judge
    judges = {"judge": first} if first else {}
    if name:  # the same endpoint twice is one judge, so that its verdicts are asked for once
        judges["second"] = first if first and name == session.config.rank.judge else open_judge(session, name)
    return judges


def _rows(session: Session, contest: Contest, policy: Answers, judges: Mapping[str, Judge]) -> Rows:
    prompts = contest.prompts
    columns: dict[str, Sequence[Any]] = {
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.conversation for prompt in prompts],
        "sft": [sample.text for sample in contest.sft],
        "policy": [sample.text for sample in policy.samples],
        "score_sft": scored(session, prompts, contest.sft, contest.scale),
        "score_policy": policy.scores.tolist(),
        "kl": policy.kl.tolist(),
    }
    for key, judge in judges.items():
        columns |= verdicts(session, key, judge, prompts, contest.sft, policy.samples)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _summary(
    session: Session, contest: Contest, policy: Sequence[Sample], rows: Rows, judges: Mapping[str, Judge]
) -> dict[str, Any]:
    """The table of figures, and the win rate by the judge (by the reward model where there is no judge)."""
    config = session.config
    names = {key: judge.name for key, judge in judges.items()}
    decides = "judge" if "judge" in names else "score"
    won = _won(rows, decides)
    samples, seed = config.evaluate.bootstrap_samples, session.seed("bootstrap")
    kl = _column(rows, "kl")
    return {
        "prompts": len(rows),
        "judge": names.get("judge"),
        "second_judge": names.get("second"),
        "win_rate": float(won.mean()),
        "win_rate_interval": bootstrap_interval(won, samples, seed),
        "mean_shift": mean_shift(*_sides(rows, decides)) if f"{decides}_policy" in rows[0] else None,
        "kl_per_answer": float(np.mean(kl)),
        "kl_mean_interval": bootstrap_interval(kl, samples, seed),
        "table": _table(names, contest.sft, policy, rows),
    }


def _table(judges: Mapping[str, str], sft: Sequence[Sample], policy: Sequence[Sample], rows: Rows) -> Rows:
    table = []

    def add(figure: str, of_sft: float, of_policy: float, note: str = "") -> None:
        table.append({"figure": figure, "sft": of_sft, "policy": of_policy, "note": note})

    for key, name in {**judges, "score": "reward model"}.items():
        if f"{key}_policy" in rows[0]:
            ours, theirs = _sides(rows, key)
            add(f"{name}: mean score", float(np.mean(theirs)), float(np.mean(ours)))
    if "second" in judges:
        share = float(_won(rows, "second").mean())
        add(f"{judges['second']}: win rate", 1 - share, share, "a judge that nothing was tuned on")
    texts = [[sample.text for sample in answers] for answers in (sft, policy)]
    lengths = [float(np.mean([len(sample.tokens or ()) for sample in answers])) for answers in (sft, policy)]
    ended = [float(np.mean([sample.finished for sample in answers])) for answers in (sft, policy)]
    openers = [top_opener(group) for group in texts]
    add("length in tokens", lengths[0], lengths[1])
    add("answers that end by themselves", ended[0], ended[1])
    add(DISTINCT, distinct_n(texts[0], 2), distinct_n(texts[1], 2), "distinct word pairs / word pairs")
    add(OPENER, openers[0][1], openers[1][1], f"“{openers[0][0]}” / “{openers[1][0]}”")
    return table


def _won(rows: Rows, key: str) -> Floats:
    """(N,): 1 where that judge prefers the policy's answer, 0 where SFT's, 0.5 where they tie."""
    if f"{key}_prefers" in rows[0]:
        return np.array([{"policy": 1.0, "tie": 0.5, "sft": 0.0}[row[f"{key}_prefers"]] for row in rows])
    return wins(*_sides(rows, key))


def _sides(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """A judge's scores of the policy's answers, and of SFT's."""
    return _column(rows, f"{key}_policy"), _column(rows, f"{key}_sft")


def _column(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows]
