"""The story at the beginning of a report: what the run was, its main result, and the limits of that."""

from collections.abc import Iterator, Sequence

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.rewards import weighted_sum
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.answer_pair import REWARDS
from lowrank_rlhf.preferences.judges.annotator import CHINESE, ENGLISH
from lowrank_rlhf.preferences.judges.builtin import BUILT_IN, REPEAT_COST, SHORT_WORDS, TOPIC_WEIGHT, WARMTH_WEIGHT
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, KIND_ANNOTATOR, KIND_ANNOTATOR_ZH, SIMULATED
from lowrank_rlhf.reports.alarms import Alarm
from lowrank_rlhf.reports.format import (
    ENDPOINT_PREFIX,
    Bounds,
    judge_in_words,
    number,
    percent,
    percent_interval,
    weight_key,
)
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_json
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.run.results import EvaluateResult, Results
from lowrank_rlhf.run.results.parts import PromptAudit
from lowrank_rlhf.run.results.rounds import stages_in

_LONGEST = 160
"""Characters of a judge's own question that are shown."""
_NAMED_ALARMS = 3  # by the headline; the others are counted


def headline(results: Results, texts: Locale, alarms: Sequence[Alarm] = ()) -> str:
    """Return the most important result in a sentence or two, from the last stage that has one.

    A win rate above chance is qualified by the run's `alarms`.
    """
    evaluate, reward, sft = results.evaluate, results.reward, results.sft
    if evaluate and evaluate.win_rate is not None:
        preferred = texts(
            "headline.evaluate",
            prompts=evaluate.prompts,
            judge=judge_in_words(evaluate.judge, texts),
            share=percent(evaluate.win_rate),
            interval=percent_interval(evaluate.win_rate_interval, texts),
            equal_length=_equal_length(evaluate, texts),
        )
        return preferred + _verdict(evaluate.win_rate_interval, alarms, texts) + _second_judge(evaluate, texts)
    if reward and reward.accuracy is not None:
        return texts(
            "headline.reward",
            pairs=number(reward.pairs_held_out),
            share=percent(reward.accuracy),
            interval=percent_interval(reward.accuracy_interval, texts),
            longer=percent(reward.longer_wins),
        )
    if sft and sft.examples is not None:
        return texts("headline.sft", examples=sft.examples, steps=number(sft.steps))
    return texts(f"headline.source.{sft.source}" if sft else "headline.none")


def _second_judge(evaluate: EvaluateResult, texts: Locale) -> str:
    """Return what the second judge prefers, by the interval of its win rate; empty without one."""
    for row in evaluate.table:
        if row.id == "win_rate" and row.judge == evaluate.second_judge and row.policy is not None:
            return texts(
                f"headline.second_judge.{_preferred(row.interval)}",
                judge=judge_in_words(row.judge, texts),
                share=percent(row.policy),
                interval=percent_interval(row.interval, texts),
            )
    return ""


def _preferred(interval: Bounds) -> str:
    """Return `aligned` or `sft`, the model for which the whole interval of a win rate speaks, else `unclear`."""
    low, high = interval or (None, None)
    if low is not None and low > 0.5:
        return "aligned"
    return "sft" if high is not None and high < 0.5 else "unclear"


def _equal_length(evaluate: EvaluateResult, texts: Locale) -> str:
    """Return the length-controlled win rate as a clause; empty if it was not measured."""
    if evaluate.length_controlled_win_rate is None:
        return ""
    share = percent(evaluate.length_controlled_win_rate)
    interval = percent_interval(evaluate.length_controlled_interval, texts)
    return texts("headline.equal_length", share=share, interval=interval)


def _verdict(interval: Bounds, alarms: Sequence[Alarm], texts: Locale) -> str:
    """Return the conclusion from the interval of a win rate, qualified by alarms if it is favourable."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    if interval[0] <= 0.5:
        return texts("verdict.worse" if interval[1] < 0.5 else "verdict.unclear")
    if not alarms:
        return texts("verdict.better")
    titles = texts("list.separator").join(alarm.title(texts) for alarm in alarms[:_NAMED_ALARMS])
    more = len(alarms) - _NAMED_ALARMS
    return texts("verdict.alarms", titles=titles) + (texts("verdict.more_alarms", count=more) if more > 0 else "")


def caveats(results: Results, texts: Locale) -> list[str]:
    """Return the limits of the headline, a line each."""
    evaluate, found = results.evaluate, []
    if evaluate and evaluate.judge and evaluate.judge.startswith(ENDPOINT_PREFIX):
        found.append(texts("caveat.language_model"))
    if evaluate and evaluate.judge in SIMULATED:
        found.append(texts("caveat.simulated"))
    if evaluate and evaluate.win_rate is not None and evaluate.judge in (None, REWARDS):
        advice = "" if evaluate.second_judge else texts("caveat.second_judge")
        found.append(texts("caveat.trained_against") + advice)
    if evaluate and evaluate.selected_on_test:
        found.append(texts("caveat.selected_on_test"))
    if (audit := results.reward and results.reward.prompt_audit) and _ignores_prompt(audit):
        shares = {"emptied": percent(audit.emptied.accuracy), "own": percent(audit.accuracy)}
        found.append(texts("caveat.without_prompt", **shares))
    return found


def _ignores_prompt(audit: PromptAudit) -> bool:
    """Return True if less than half of what a reward model is better than chance needs the prompt, by the interval."""
    most_lost = audit.emptied.lost_interval[1]
    return most_lost is not None and most_lost < (audit.accuracy - 0.5) / 2


def read_settings(run_dir: RunDir) -> Config | None:
    """Return the run's config, or None for a run without one."""
    try:
        return load_config(run_dir.run / "config.yaml")
    except (OSError, UserError):
        return None


def about_run(run_dir: RunDir, config: Config | None, texts: Locale) -> str:
    """Return the parts that the run's folder knows, separated by dots; empty for a run without settings."""
    if config is None:
        return ""
    return " · ".join([*_settings(config, texts), *_history(run_dir, texts)])


def _settings(config: Config, texts: Locale) -> Iterator[str]:
    model = config.model
    yield texts("about.model", source=model.source, quantization=model.quantization)
    yield texts("about.data", prompts=config.data.prompts, held_out=config.data.held_out)
    if config.ppo.uses_reward_model:
        yield _ranked(config, texts)
    else:
        yield texts("about.rewards", rewards=", ".join(config.ppo.rewards))
    algorithm = config.align.algorithm
    weight = config.ppo.kl_coef if algorithm == "ppo" else config.align.beta
    key = weight_key(algorithm)
    yield texts("about.training", algorithm=algorithm.upper(), weight=f"{key} {weight:g}", rank=config.lora.rank)
    if algorithm == "dpo":
        yield texts("about.epochs", count=config.align.epochs)
    else:
        yield texts("about.steps", count=config.ppo.steps if algorithm == "ppo" else config.align.steps)
    yield texts("about.seed", seed=config.seed)


def _ranked(config: Config, texts: Locale) -> str:
    if judge := config.ranking_judge:
        return texts("about.judge", judge=judge_in_words(judge, texts))
    return texts(f"about.{config.rank.source}", source=config.rank.dataset or "")


def rewarded(config: Config | None, texts: Locale) -> str:
    """Return what ranking and training reward and the scale of the scores; empty for a run without settings."""
    return "".join(_rewarded(config, texts)).strip() if config else ""


def _rewarded(config: Config, texts: Locale) -> Iterator[str]:
    """Yield the sentences."""
    ppo = config.ppo
    if ppo.uses_reward_model:
        yield _ranking_rewards(config, texts)
        yield texts("rewarded.scores" if ppo.normalize_score else "rewarded.raw")
    if ppo.rewards:
        yield texts("rewarded.terms", terms=weighted_sum(ppo.rewards))
    if ppo.score_clip is not None and config.align.algorithm != "dpo":  # which learns from comparisons
        yield texts("rewarded.clipped", clip=f"{ppo.score_clip:g}")


def _ranking_rewards(config: Config, texts: Locale) -> str:
    name = config.ranking_judge
    if name is None:
        return texts(f"rewarded.{config.rank.source}", source=config.rank.dataset or "")
    if name in (KIND_ANNOTATOR, KIND_ANNOTATOR_ZH):
        limits = ENGLISH if name == KIND_ANNOTATOR else CHINESE
        return texts("rewarded.kind", fewest=limits.fewest_words, most=limits.most_words)
    if name in BUILT_IN:
        shares = {"warmth": percent(WARMTH_WEIGHT), "topic": percent(TOPIC_WEIGHT)}
        return texts(f"rewarded.{name}", **shares, repeats=f"{REPEAT_COST:g}", fewest=SHORT_WORDS)
    if name == ENDPOINT and config.rank.endpoint:
        asked = config.rank.endpoint
        question = asked.template if asked.ask == "pairwise" else asked.rubric
        own = question not in ("english", "chinese")
        wanted = texts("rewarded.own", question=_cut(question)) if own else texts("rewarded.built_in")
        return texts(
            f"rewarded.{asked.ask}", asked=wanted, judge=judge_in_words(f"{ENDPOINT_PREFIX}{asked.model}", texts)
        )
    return texts("rewarded.function", name=name)


def _cut(question: str) -> str:
    """Return the beginning of a question in one line."""
    line = " ".join(question.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _history(run_dir: RunDir, texts: Locale) -> Iterator[str]:
    marks = [mark for stage in stages_in(run_dir.run) if (mark := run_dir.mark(stage))]
    if dates := sorted(mark.finished_at for mark in marks if mark.finished_at):
        yield dates[-1][:10]
    machine = read_json(run_dir.run / "env.json") or {}
    if "platform" in machine:
        yield texts("about.machine", platform=machine["platform"], cores=machine.get("cpu_count"))
    if marks:
        peak = max(mark.peak_memory_bytes for mark in marks)
        yield texts("about.cost", time=duration(sum(mark.seconds for mark in marks)), memory=memory(peak))
