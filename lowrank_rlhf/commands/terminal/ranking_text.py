"""English texts of ranking in the terminal: help, refusals, drafts, progress, agreement."""

from lowrank_rlhf.errors import visible
from lowrank_rlhf.preferences.agreement import AlphaLevel
from lowrank_rlhf.preferences.carelessness import Sign
from lowrank_rlhf.preferences.labelling import (
    FLAGS,
    KEYS,
    LABELS,
    SHORT_FLAGS,
    Action,
    Draft,
    Refusal,
    RefusalKind,
    labels,
)
from lowrank_rlhf.preferences.overview import careless_annotators
from lowrank_rlhf.preferences.project import Project, counted
from lowrank_rlhf.preferences.team.doubt import Doubt
from lowrank_rlhf.preferences.team.pace import DeadlinePace

TIE, UNDO, SKIP, FLAG, QUIT = (
    KEYS[action][0] for action in (Action.TIE, Action.UNDO, Action.SKIP, Action.FLAG, Action.QUIT)
)
HELP_KEY = KEYS[Action.HELP][0]


def describe(draft: Draft) -> str:
    """Return one line about a draft: `2 > 1 = 3 > _   left: 4   flags: unsure`."""
    order = " > ".join(" = ".join(LABELS[answer] for answer in tier) for tier in draft.tiers)
    open_place = (" = _" if draft.tied else " > _" if draft.tiers else "_") if draft.left else ""
    parts = [f"{order}{open_place}"]
    if draft.left:
        parts.append(f"left: {labels(draft.left)}")
    if draft.flags:
        parts.append(f"flags: {', '.join(visible(flag) for flag in draft.flags)}")
    if draft.flagging:
        parts.append(flag_keys())
    return "   ".join(parts)


def flag_keys() -> str:
    """Return `flag: 1 unsure, 2 prompt unclear, ...`."""
    return "flag: " + ", ".join(f"{key} {flag}" for key, flag in FLAGS.items())


HELP = f"""\
1 2 3 ...   the next best answer; 2 1 3 puts answer 2 first
{TIE}           the next answer is as good as the one before: 2 {TIE} 1 3
Enter       save; answers without a place are below the others (in a script every answer must have one)
{UNDO}           undo the last key, or the last saved ranking or skip; Backspace does the same
{SKIP}           skip this prompt; at the end, restore the skipped ones
{FLAG}           flag the ranking; the same again removes the flag
            {flag_keys()}
{" ".join(SHORT_FLAGS)}         flag: {", ".join(SHORT_FLAGS.values())}. Then Enter also saves without an order
{HELP_KEY} {QUIT}         this help; quit (saved rankings are kept)"""

REFUSALS = {
    RefusalKind.NOT_PLACED: "not placed yet: {names}",
    RefusalKind.TIE_OPEN: f"{TIE} needs the answer that is as good; {UNDO} undoes it",
    RefusalKind.TIE_FIRST: f"{TIE} ties an answer to the one before it: place one first",
    RefusalKind.TIE_TWICE: f"{TIE} was pressed already",
    RefusalKind.ALL_PLACED: f"every answer is placed: Enter saves, {UNDO} undoes",
    RefusalKind.NO_ANSWER: "no answer {names} here: they are 1 to {answers}",
    RefusalKind.UNKNOWN_KEY: f"{{names}} has no effect here; {HELP_KEY} shows the keys",
    RefusalKind.PLACED: f"{{names}} is placed already; {UNDO} undoes the last key",
    RefusalKind.NO_FLAG: f"{flag_keys()}; {UNDO} undoes the {FLAG}",
}

ALPHA = {
    AlphaLevel.UNKNOWN: "unknown: no two annotators have judged the same pair of answers, or they only tied them",
    AlphaLevel.GOOD: "good: the annotators are interchangeable",
    AlphaLevel.FAIR: "fair: enough for tentative conclusions",
    AlphaLevel.WEAK: "weak: tastes differ, or the instructions are vague; more annotators per prompt help",
    AlphaLevel.NONE: "none: hardly better than chance",
    AlphaLevel.OPPOSITE: "opposite: the annotators contradict each other; check whether one ranks worst first",
}


def refusal_text(refusal: Refusal) -> str:
    """Explain why a key has no effect."""
    names = refusal.names
    if refusal.kind is RefusalKind.UNKNOWN_KEY and not (len(names) == 1 and names.isprintable() and names.strip()):
        names = "that key"
    return REFUSALS[refusal.kind].format(names=names, answers=refusal.answers)


SIGNS = {
    Sign.PATTERN: "{pattern} have the same places on the screen, best to worst, though answers are shuffled",
    Sign.PLACE: "{place} have the best answer at the same place on the screen, though answers are shuffled",
    Sign.FAST: "most took less time than reading the answers takes",
    Sign.CHANCE: "they and those of others agree no better than chance",
    Sign.AGAIN: "prompts ranked twice are ordered hardly more alike than by chance",
    Sign.CHECKS: "attention checks are ordered hardly better than by chance",
}

_WHY = {
    "setting": "",
    "power": ": a reward model trained on fewer often fails its test. To change the number, set rank.minimum_rankings",
    "weak": ": the last reward model failed its test",
}


def pace_text(pace: DeadlinePace | None) -> str:
    """Return a sentence with the pace that the deadline requires; empty without one."""
    if pace is None:
        return ""
    if not pace.days:
        return f"The deadline, {pace.deadline}, has passed."
    return f"Until the deadline, {pace.deadline}: {pace.each_day} a day."


def doubt_text(doubt: Doubt) -> str:
    """Return the end of a sentence on agreement that is not above chance, and on the prompts that would show it."""
    share = f"{100 * doubt.share:.0f} % of {doubt.pairs} pairs"
    if not doubt.more:
        return (
            f"annotators order only {share} alike, no better than chance: a reward model cannot learn from such "
            "rankings."
        )
    more = counted(doubt.more, "more prompt")
    if doubt.alone:
        return (
            f"rankings of a prompt by the same annotator agree on {share}, not shown to be above chance. Rankings of "
            f"about {counted(doubt.more, 'prompt')} by a second annotator would show whether it is."
        )
    return (
        f"annotators order {share} alike, not shown to be above chance. About {more} ranked by two of them would show "
        "whether it is."
    )


def _gain(project: Project) -> str:
    """Return a sentence on what further rankings would gain by the newest reward model.

    Empty without its curve, or if no prompts are left to rank.
    """
    tests = project.reward_tests if project.has_unranked else ()
    curve = tests[-1].curve if tests else None
    return f"By the last reward model, {curve.in_words()}." if curve else ""


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def project_summary(project: Project) -> str:
    """Return the number of ranked prompts and the next command."""
    count, need, gain = project.store.ranked_prompts(), project.need, _gain(project)
    of_round = f" of round {project.round}" if project.round > 1 else ""
    if count < need.prompts:
        of, more = f"{counted(need.prompts, 'prompt')}{of_round}", need.prompts - count
        missing = f"{count} of {of} ranked, {more} more needed{_WHY[need.reason]}."
        return _joined(missing, pace_text(project.pace), gain)
    if project.settings is None:
        return f"{counted(count, 'prompt')} ranked. To export them:\n  {project.next_command}"
    if found := project.doubtful:
        return (
            f"{counted(count, 'prompt')}{of_round} ranked ({need.prompts} needed), but {doubt_text(found)} See "
            f"label RUN --stats. To resume the run anyway:\n  {project.next_command}"
        )
    ranked = f"{counted(count, 'prompt')}{of_round} ranked ({need.prompts} needed)."
    if project.refused:
        return _joined(ranked, "The reward model trained on them failed its test. Start a run with more prompts.", gain)
    return _joined(ranked, _verdict(project), gain, f"To resume the run:\n  {project.next_command}")


def _verdict(project: Project) -> str:
    """Return a sentence on what speaks against the rankings, or how often a reward model passes its test with them."""
    need = project.need
    if careless := careless_annotators(project):
        names = ", ".join(visible(one.annotator) for one in careless)
        return f"First check the rankings by {names}: see label RUN --stats."
    if need.passes is None or need.accuracy is None:
        return ""
    ranked = f"{need.prompts + need.earlier} of all rounds" if need.earlier else f"{need.prompts}"
    return (
        f"With {ranked}, a reward model that orders {100 * need.accuracy:.0f} % of pairs correctly passes its "
        f"test in {100 * need.passes:.0f} % of simulations."
    )
