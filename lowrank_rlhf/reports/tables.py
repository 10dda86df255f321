"""Tables of figures, in the reader's language."""

from collections.abc import Iterator

from lowrank_rlhf.reports.alarms import check_phrase, length_rule, reward_weakness
from lowrank_rlhf.reports.format import (
    Table,
    algorithm,
    judge_in_words,
    judge_label,
    number,
    number_interval,
    percent,
    percent_interval,
    points,
    points_interval,
)
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.run.results import SHARES, EvaluateResult, FigureRow, Results, RewardResult
from lowrank_rlhf.run.results.parts import PromptAudit


def comparison(results: Results, texts: Locale) -> Table | None:
    """Return the table of SFT against the aligned model; None without an evaluation."""
    evaluate = results.evaluate
    if evaluate is None or not evaluate.table:
        return None
    rows = [
        (
            figure_label(row, texts),
            figure_value(row, row.sft),
            figure_value(row, row.policy),
            _note(row, evaluate, texts),
        )
        for row in evaluate.table
    ]
    rows += _overall(evaluate, texts)
    if reward := results.reward:
        note = texts(
            "note.reward_accuracy",
            interval=percent_interval(reward.accuracy_interval, texts),
            longer=percent(reward.longer_wins),
            longer_interval=percent_interval(reward.longer_wins_interval, texts),
        )
        rows.append((texts("figure.reward_accuracy"), "", percent(reward.accuracy), note))
    header = tuple(texts(f"column.{name}") for name in ("figure", "sft", "policy", "meaning"))
    several = "" if evaluate.answers_per_prompt == 1 else ".several"
    lead = texts(f"comparison.lead{several}", prompts=evaluate.prompts, answers=evaluate.answers_per_prompt)
    return Table(texts("comparison.title"), lead, header, tuple(rows), ("text", "text", "text", "note"))


def _overall(evaluate: EvaluateResult, texts: Locale) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of win rates, shift and distances."""
    judge = judge_in_words(evaluate.judge, texts)
    if (share := evaluate.win_rate) is not None:
        interval = percent_interval(evaluate.win_rate_interval, texts)
        note = texts("note.preferred", judge=judge, interval=interval)
        yield texts("figure.preferred"), percent(1 - share), percent(share), note
    if (share := evaluate.length_controlled_win_rate) is not None:
        interval = percent_interval(evaluate.length_controlled_interval, texts)
        note = texts("note.equal_length", interval=interval)
        yield texts("figure.equal_length"), percent(1 - share), percent(share), note
    if (shift := evaluate.mean_shift) is not None:
        yield texts("figure.mean_shift"), number(0), number(shift), texts("note.mean_shift", judge=judge)
    if (kl := evaluate.kl_per_answer) is not None:
        interval = number_interval(evaluate.kl_mean_interval, texts)
        yield texts("figure.kl"), number(0), number(kl), texts("note.kl", interval=interval)
    if (kl := evaluate.kl_at_temperature_1) is not None and evaluate.temperature not in (None, 1):
        interval = number_interval(evaluate.kl_at_temperature_1_interval, texts)
        note = texts("note.kl_at_temperature_1", interval=interval, temperature=number(evaluate.temperature))
        yield texts("figure.kl_at_temperature_1"), number(0), number(kl), note


def figure_value(row: FigureRow, value: float | None) -> str:
    """Format a figure as the same kind of number everywhere: shares in per cent."""
    return percent(value) if row.id in SHARES else number(value)


def figure_label(row: FigureRow, texts: Locale) -> str:
    """Return the row's label; rows of version 0.1 have no id and keep the English one."""
    if row.id is None:
        return row.figure
    return texts(f"figure.{row.id}", judge=judge_label(row.judge, texts))


def _note(row: FigureRow, evaluate: EvaluateResult, texts: Locale) -> str:
    if row.id == "top_opener" and row.openers:
        return texts("note.top_opener", sft=row.openers[0], policy=row.openers[1])
    if row.id == "distinct_2":
        return texts("note.distinct_2")
    if row.id == "win_rate" and row.judge == evaluate.second_judge:
        return texts("note.second_judge")
    return row.note


def details(results: Results, texts: Locale) -> list[Table]:
    """Return every other table that the run has figures for."""
    found = (_reward(results, texts), _rewards(results, texts), _training(results, texts), self_checks(results, texts))
    return [table for table in found if table]


def _reward(results: Results, texts: Locale) -> Table | None:
    reward = results.reward
    if reward is None:
        return None
    values = {
        "accuracy": percent(reward.accuracy) + percent_interval(reward.accuracy_interval, texts),
        "longer_wins": percent(reward.longer_wins) + percent_interval(reward.longer_wins_interval, texts),
        "over_length": points(reward.over_length) + points_interval(reward.over_length_interval, texts),
        "ece": percent(reward.ece),
        "length_correlation": number(reward.length_correlation),
        "scale": texts("reward.scale.value", mean=number(reward.score_mean), deviation=number(reward.score_std)),
        "pairs_train": number(reward.pairs_train),
    }
    if accuracies := reward.member_accuracies:
        values["members"] = texts(
            "reward.members.value", count=len(accuracies), low=percent(min(accuracies)), high=percent(max(accuracies))
        )
        values["score_spread"] = number(reward.score_spread)
    held_out = {"pairs": number(reward.pairs_held_out), "prompts": number(reward.prompts_held_out)}
    held_out["rule"] = texts.render(length_rule(reward.longer_wins))
    if reward.over_length is None:
        del values["over_length"]  # version 0.1 did not measure it
    rows = tuple(
        (texts(f"reward.{key}"), value, texts(f"reward.{key}.note", **held_out)) for key, value in values.items()
    )
    rows += _audit_rows(reward.prompt_audit, texts)
    header = tuple(texts(f"column.{name}") for name in ("figure", "value", "meaning"))
    return Table(texts("reward.title"), _reward_verdict(reward, results, texts), header, rows, ("text", "text", "note"))


def _audit_rows(audit: PromptAudit | None, texts: Locale) -> tuple[tuple[str, str, str], ...]:
    """Return the accuracies with replaced prompts; none for runs of version 0.1."""
    if audit is None:
        return ()
    measured = {"emptied": audit.emptied, "shuffled": audit.shuffled}
    return tuple(
        (
            texts(f"reward.{key}"),
            percent(found.accuracy) + percent_interval(found.interval, texts),
            texts(
                f"reward.{key}.note",
                pairs=number(audit.pairs),
                own=percent(audit.accuracy),
                lost=points(found.lost) + points_interval(found.lost_interval, texts),
            ),
        )
        for key, found in measured.items()
        if found
    )


def _reward_verdict(reward: RewardResult, results: Results, texts: Locale) -> str:
    """Return the verdict on the reward model as a sentence; empty without a measurement."""
    if weakness := reward_weakness(results):
        return texts("reward.verdict", verdict=texts.render(weakness))
    if reward.accuracy is None or reward.over_length is None:
        return ""  # runs of version 0.1 compared point estimates, which shows nothing
    return texts("reward.good", rule=texts.render(length_rule(reward.longer_wins)))


def _rewards(results: Results, texts: Locale) -> Table | None:
    """Return the rewards that the policy was trained on; None for the reward model alone."""
    if results.ppo is None or not results.ppo.rewards:
        return None
    rows = tuple(
        (
            reward.name,
            reward.source,
            number(reward.weight),
            texts("reward.scale.value", mean=number(reward.mean), deviation=number(reward.std))
            if (reward.mean, reward.std) != (0.0, 1.0)
            else "",
        )
        for reward in results.ppo.rewards
    )
    header = tuple(texts(f"column.{name}") for name in ("reward", "source", "weight", "scale"))
    return Table(texts("rewards.title"), texts("rewards.lead"), header, rows)


def _training(results: Results, texts: Locale) -> Table | None:
    made_by = algorithm(results)
    rows = [
        (texts("training.row", stage=_stage(stage, made_by, texts), figure=texts(f"training.{key}")), number(value))
        for stage, key, value in (
            ("sft", "examples", results.sft and results.sft.examples),
            ("sft", "steps", results.sft and results.sft.steps),
            ("sft", "loss", results.sft and results.sft.loss),
            ("ppo", "steps", results.ppo and results.ppo.steps),
            ("ppo", "best_step", results.ppo and results.ppo.best_step),
            ("ppo", "seconds_per_step", results.ppo and results.ppo.seconds_per_step),
        )
        if value is not None
    ]
    header = (texts("column.figure"), texts("column.value"))
    return Table(texts("training.title"), "", header, tuple(rows)) if rows else None


def self_checks(results: Results, texts: Locale) -> Table | None:
    """Return the self-checks of all stages with their outcome; None without any."""
    made_by = algorithm(results)
    checks = [(stage, claim) for stage, result in results.by_stage().items() for claim in result.claims]
    if not checks:
        return None
    rows = tuple(
        (
            _stage(stage, made_by, texts),
            texts.render(check_phrase(claim)),
            number(claim.figure, texts),
            texts("check.passed" if claim.holds else "check.failed"),
        )
        for stage, claim in checks
    )
    header = tuple(texts(f"column.{name}") for name in ("stage", "check", "measured", "outcome"))
    failed = frozenset(index for index, (_, claim) in enumerate(checks) if not claim.holds)
    return Table(texts("checks.title"), texts("checks.lead"), header, rows, ("text", "text", "text", "verdict"), failed)


def _stage(stage: str, made_by: str, texts: Locale) -> str:
    return made_by if stage == "ppo" else texts(f"stage.{stage}")
