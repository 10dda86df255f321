"""Any adapter against any other: answers of both to the same prompts, and what judge and reward model make of them."""

from collections.abc import Sequence
from typing import Any

from lowrank_rlhf.evaluation.contestants import Match, run_adapter
from lowrank_rlhf.evaluation.match_metrics import length_note, match_figures
from lowrank_rlhf.evaluation.run_judges import judge_all
from lowrank_rlhf.evaluation.sampling import answer
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.adapters import fill_role, trained_on
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.models.storage import load_role
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens
from lowrank_rlhf.training.reward_data import about_reward
from lowrank_rlhf.training.rollout import RewardScale, reward_scores

Rows = list[dict[str, Any]]

READ_AT_ONCE = 128
"""Answers read between two steps of the progress bar; the states that the roles share exist for these only."""


def evaluate_match(session: Session, match: Match) -> dict[str, Any]:
    """Every figure of the match, notes on what to beware of, and the answers themselves."""
    rows = play(session, match)
    judge = match.judge.name if match.judge else None
    samples, seed = session.config.evaluate.bootstrap_samples, derive_seed(match.seed, "bootstrap")
    figures = match_figures(rows, match.answers_per_prompt, judge, samples, seed)
    notes = [*match.notes, *_other_bases(session, match), *filter(None, [length_note(figures)])]
    sides = {"left": match.left.name, "right": match.right.name}
    return {**sides, **figures, "notes": notes, "answers": rows}


def play(session: Session, match: Match) -> Rows:
    """One row for each pair of answers, prompt by prompt; both sides sample from the same random streams.

    `judge_left` and `judge_right` are there with an absolute judge, `judge_prefers` with another one, `score_left` and
    `score_right` where the run has a reward model. `kl` is log right - log left of the right answer, in nats.
    """
    fill_role(session.roles, Role.REFERENCE, match.left.folder)
    fill_role(session.roles, Role.POLICY, match.right.folder)
    scale = load_reward_model(session) if session.run_dir.artifact("adapters/reward").is_dir() else None
    left = _answers(session, match, Role.REFERENCE, "left")
    right = _answers(session, match, Role.POLICY, "right")
    prompts = [prompt for prompt in match.prompts for _ in range(match.answers_per_prompt)]
    columns: dict[str, Sequence[Any]] = {
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.conversation for prompt in prompts],
    }
    for side, answers in (("left", left), ("right", right)):
        columns |= {
            side: [sample.text for sample in answers],
            f"tokens_{side}": [len(sample.tokens or ()) for sample in answers],
            f"finished_{side}": [sample.finished for sample in answers],
        }
    columns |= _read(session, prompts, left, right, scale)
    if match.judge:
        columns |= _judged(session, match.judge, prompts, left, right)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def load_reward_model(session: Session) -> RewardScale:
    """Put the run's reward model into its role; how its numbers become scores. Raises `UserError` without one."""
    folder = run_adapter(session.run_dir, "reward")
    about = about_reward(folder)
    load_role(session.roles, Role.REWARD, folder)
    return RewardScale(about["pooling"], about["score_mean"], about["score_std"])


def _other_bases(session: Session, match: Match) -> list[str]:
    """A note on each adapter that names another base than this one: shapes alone cannot tell."""
    ours = session.config.model.source
    named = {side.name: trained_on(side.folder) for side in (match.left, match.right) if side.folder}
    return [
        f"{name} says that it was trained on {theirs}, and here it is used on {ours}"
        for name, theirs in named.items()
        if theirs not in (None, ours)
    ]


def _answers(session: Session, match: Match, role: Role, side: str) -> list[Sample]:
    count = match.answers_per_prompt
    seed = derive_seed(match.seed, "held-out answers")  # as in the evaluate stage: the same answers
    with session.progress.track(side, len(match.prompts) * count, "answers") as bar:
        groups = answer(session, role, match.prompts, count=count, seed=seed, bar=bar)
    return [sample for group in groups for sample in group]


def _read(
    session: Session,
    prompts: Sequence[Prompt],
    left: Sequence[Sample],
    right: Sequence[Sample],
    scale: RewardScale | None,
) -> dict[str, list[float]]:
    """KL of each right answer, and the reward model's scores of both sides."""
    roles, temperature = session.roles, session.config.sample.temperature
    columns: dict[str, list[float]] = {"kl": []}
    if scale:
        columns |= {"score_left": [], "score_right": []}
    with session.progress.track("read", len(prompts), "pairs") as bar:
        for start in range(0, len(prompts), READ_AT_ONCE):
            part = slice(start, start + READ_AT_ONCE)
            batch = _packed(session, prompts[part], right[part])
            ours = score_logprobs(roles, Role.POLICY, batch, temperature).logprobs
            theirs = score_logprobs(roles, Role.REFERENCE, batch, temperature).logprobs
            columns["kl"] += masked_sum(k1(ours, theirs), batch.response).tolist()
            if scale:
                columns["score_right"] += reward_scores(roles, batch, scale).tolist()
                others = _packed(session, prompts[part], left[part])
                columns["score_left"] += reward_scores(roles, others, scale).tolist()
            bar.advance(len(batch))
    return columns


def _packed(session: Session, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> Sequences:
    tokens = [sample.tokens or () for sample in answers]
    encoded = encode_prompts(session.base, prompts, max_prompt_tokens(session.config))
    batch = pack(encoded, tokens, session.base.pad, session.base.device)
    return session.roles.with_trunk(batch)


def _judged(
    session: Session, judge: Judge, prompts: Sequence[Prompt], left: Sequence[Sample], right: Sequence[Sample]
) -> dict[str, list[Any]]:
    """The judge's word on each pair, which it sees in one call: some judges compare, and score nothing by itself."""
    pairs = [(prompt, both) for prompt, *both in zip(prompts, left, right, strict=True)]
    scores = judge_all(session, judge, "judge", pairs)
    if judge.absolute:
        return {"judge_left": [pair[0] for pair in scores], "judge_right": [pair[1] for pair in scores]}
    return {"judge_prefers": ["tie" if one == other else "left" if one > other else "right" for one, other in scores]}
