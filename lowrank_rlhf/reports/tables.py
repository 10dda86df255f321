"""The report's words: the headline that anyone understands, and the tables of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_rlhf.reports.format import (
    ENDPOINT_PREFIX,
    Summaries,
    Table,
    algorithm,
    judge_in_words,
    number,
    number_interval,
    percent,
    percent_interval,
)

_STAGE_WORDS = {"sft": "fine-tuning", "reward": "reward model", "evaluate": "evaluation"}


def _verdict(interval: Sequence[float | None] | None) -> str:
    """What the interval of a win rate lets one say."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    if interval[0] > 0.5:
        return " That is more than chance explains."
    if interval[1] < 0.5:
        return " The alignment made the answers worse in this judge's eyes."
    return " That is not clearly different from tossing a coin (50 %)."


def headline(summaries: Summaries) -> str:
    """The run's most important result in a sentence or two, from the last stage that has one."""
    evaluate, reward, sft = (summaries.get(stage, {}) for stage in ("evaluate", "reward", "sft"))
    if evaluate.get("win_rate") is not None:
        interval = evaluate.get("win_rate_interval")
        return (
            f"On {evaluate['prompts']} new prompts {judge_in_words(evaluate['judge'])} preferred the aligned model's "
            f"answer in {percent(evaluate['win_rate'])} of cases{percent_interval(interval)}.{_verdict(interval)}"
        )
    if reward.get("accuracy") is not None:
        longer, interval = percent(reward.get("longer_wins")), percent_interval(reward.get("accuracy_interval"))
        return (
            f"On {reward['pairs_held_out']} pairs of answers that it had not seen, the reward model picked the "
            f"preferred one in {percent(reward['accuracy'])} of cases{interval}. "
            f"Always picking the longer answer is right in {longer}, tossing a coin in 50 %."
        )
    if "examples" in sft:
        return f"The model was fine-tuned on {sft['examples']} example answers in {sft['steps']} steps."
    if sft:
        begins = "the bare base" if sft.get("source") == "base" else "an adapter made elsewhere"
        return f"This run begins with {begins}; it has trained nothing yet."
    return "No stage of this run has results yet."


def caveat(summaries: Summaries) -> str:
    """What the headline does not say, or nothing."""
    judge = str(summaries.get("evaluate", {}).get("judge"))
    if judge.startswith(ENDPOINT_PREFIX):
        return (
            "A language model judged the answers, each pair in both orders, not people. It may favour long answers, "
            "and those that sound like its own."
        )
    if judge != "simulated-annotator":
        return ""
    return (
        "The simulated annotator is a program with fixed rules, not a person. The figures show how well the training "
        "reached what the program rewards, not how people would judge the answers."
    )


def comparison(summaries: Summaries) -> Table | None:
    """SFT beside the aligned model, or None without an evaluation."""
    summary = summaries.get("evaluate", {})
    if not summary.get("table"):
        return None
    judge, interval = judge_in_words(summary["judge"]), summary.get("win_rate_interval")
    rows = [
        (str(row["figure"]), number(row["sft"]), number(row["policy"]), str(row.get("note") or ""))
        for row in summary["table"]
    ]
    if summary.get("win_rate") is not None:
        note = f"prompts on which {judge} prefers the aligned answer; ties count half{percent_interval(interval)}"
        rows.append(("preferred (win rate)", percent(1 - summary["win_rate"]), percent(summary["win_rate"]), note))
    if summary.get("mean_shift") is not None:
        note = f"rise of {judge}'s mean score, in standard deviations of SFT's scores"
        rows.append(("shift of the mean", number(0), number(summary["mean_shift"]), note))
    if summary.get("kl_per_answer") is not None:
        note = f"KL in nats per answer{number_interval(summary.get('kl_mean_interval'))}; 0 is the same model"
        rows.append(("distance from SFT", number(0), number(summary["kl_per_answer"]), note))
    if reward := summaries.get("reward"):
        note = (
            f"of the reward model on held-out pairs{percent_interval(reward['accuracy_interval'])}; "
            f"“the longer one wins”: {percent(reward['longer_wins'])}{percent_interval(reward['longer_wins_interval'])}"
        )
        rows.append(("reward model: accuracy", "", percent(reward["accuracy"]), note))
    lead = f"Answers to {summary['prompts']} prompts that no stage was trained on."
    return Table("Before and after", lead, ("figure", "SFT (before)", "aligned (after)", "what it is"), tuple(rows))


def _reward(summary: Mapping[str, Any]) -> Table | None:
    if not summary:
        return None
    rows = [
        (
            "accuracy",
            percent(summary.get("accuracy")) + percent_interval(summary.get("accuracy_interval")),
            f"preferred answer picked, {number(summary.get('pairs_held_out'))} pairs of "
            f"{number(summary.get('prompts_held_out'))} held-out prompts; 50 % is chance",
        ),
        (
            "longer answer wins",
            percent(summary.get("longer_wins")) + percent_interval(summary.get("longer_wins_interval")),
            "what always picking the longer answer would reach",
        ),
        ("calibration error", percent(summary.get("ece")), "mean gap between how sure it is and how often it is right"),
        ("correlation with length", number(summary.get("length_correlation")), "of score and answer length; -1 to 1"),
        (
            f"score of {summary.get('scores_of', 'SFT answers')}",
            f"{number(summary.get('score_mean'))} ± {number(summary.get('score_std'))}",
            "mean and standard deviation, raw",
        ),
        ("training pairs", number(summary.get("pairs_train")), "comparisons that it learnt from"),
    ]
    return Table("Reward model", str(summary.get("verdict") or ""), ("figure", "value", "what it is"), tuple(rows))


def _training(summaries: Summaries) -> Table | None:
    sft, ppo, aligned = summaries.get("sft", {}), summaries.get("ppo", {}), algorithm(summaries)
    rows = [
        (f"{name}: {label}", number(summary[key]))
        for name, summary, key, label in (
            ("fine-tuning", sft, "examples", "examples"),
            ("fine-tuning", sft, "steps", "steps"),
            ("fine-tuning", sft, "loss", "final loss, nats per token"),
            (aligned, ppo, "steps", "steps"),
            (aligned, ppo, "best_step", "best step, the one kept"),
            (aligned, ppo, "seconds_per_step", "seconds per step"),
        )
        if key in summary
    ]
    return Table("Training", "", ("figure", "value"), tuple(rows)) if rows else None


def claims(summaries: Summaries) -> Table | None:
    """Every stage's claims about itself and whether they held."""
    words = _STAGE_WORDS | {"ppo": algorithm(summaries)}
    rows = [
        (words.get(stage, stage), str(claim["claim"]), number(claim["figure"]), "yes" if claim["holds"] else "NO")
        for stage, summary in summaries.items()
        for claim in summary.get("claims", ())
    ]
    if not rows:
        return None
    lead = "Checked while it ran; a NO means that its figures are not to be trusted."
    return Table("What this run proved about itself", lead, ("stage", "claim", "figure", "holds"), tuple(rows))


def details(summaries: Summaries) -> list[Table]:
    """Every other table that there are figures for."""
    found = (_reward(summaries.get("reward", {})), _training(summaries), claims(summaries))
    return [table for table in found if table]


def scores(row: Mapping[str, Any], side: str) -> str:
    """The scores of one side's answer (`sft` or `policy`) in words, those that there are, and who prefers it."""
    parts = []
    for key, name in {"judge": "judge", "second": "second judge", "score": "reward model"}.items():
        if row.get(f"{key}_{side}") is not None:
            parts.append(f"{name} {number(row[f'{key}_{side}'])}")
        elif row.get(f"{key}_prefers") in (side, "tie"):
            parts.append(f"{name}: {'tie' if row[f'{key}_prefers'] == 'tie' else 'preferred'}")
    return " · ".join(parts)
