"""`label`: people rank a run's answers, in the terminal or in the browser."""

import getpass
import json
import os
import secrets
import signal
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, ServedAsOption, echo
from lowrank_rlhf.commands.ranking.annotations import find_project
from lowrank_rlhf.commands.terminal.ranking_keys import Keys, keys_of_this_process
from lowrank_rlhf.commands.terminal.ranking_loop import RankingLoop
from lowrank_rlhf.commands.terminal.ranking_text import ALPHA, SIGNS, project_summary
from lowrank_rlhf.dashboard.access.password import PASSWORD_VARIABLE
from lowrank_rlhf.errors import Stopped, UserError, WaitingForPeople, visible
from lowrank_rlhf.preferences.agreement import RankingStatistics, alpha_level, krippendorff_alpha, ranking_statistics
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.preferences.project import Project, counted
from lowrank_rlhf.preferences.team.annotators import AnnotatorFigures, figures_of_each
from lowrank_rlhf.preferences.team.checks import attention
from lowrank_rlhf.run.progress import duration

LOOPBACK = "127.0.0.1"
PORT = 7861


def label(
    run: RunArgument,
    annotator: Annotated[
        str | None, typer.Option("--annotator", metavar="NAME", help="Your name. Default: asked, or the login name.")
    ] = None,
    runs: RunsOption = Path("runs"),
    stats: Annotated[bool, typer.Option("--stats", help="Show progress, agreement and biases instead.")] = False,
    as_json: JsonOption = False,
    web: Annotated[bool, typer.Option("--web", help="Serve a page for annotators instead.")] = False,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="With --web: address to listen on.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --web: port; 0 for any free one.")] = PORT,
    served_as: ServedAsOption = None,
) -> None:
    """Rank answers in the terminal, or in the browser (--web).

    For a run with rank.source=human that has stopped with exit code 5. Each ranking is saved immediately, and the same
    command resumes. Type the answers best to worst, such as 2 1 = 3, then Enter; h shows all keys. If stdin is not a
    terminal, each line is a ranking or a command.

    --web serves a page until Ctrl-C, for several annotators at once; each logs in with a name. The password is the
    value of the environment variable LOWRANK_RLHF_PASSWORD (12 or more characters), or a new one that is printed. The
    page listens on this computer only, unless --host is set.

    Exit code 0 if enough prompts are ranked for the run to resume, 5 if not, 130 after Ctrl-C without --web. Saved
    rankings are kept in every case.

    \b
    Examples:
      python -m lowrank_rlhf label people
      python -m lowrank_rlhf label people --annotator anna
      python -m lowrank_rlhf label people --stats
      python -m lowrank_rlhf label people --stats --json
      python -m lowrank_rlhf label people --web
    """
    if as_json and not stats:
        raise UserError("--json requires --stats")
    if not web and (host, port, served_as) != (LOOPBACK, PORT, None):
        raise UserError("--host, --port and --served-as require --web")
    if web and (stats or annotator is not None):
        raise UserError("--web cannot be combined with --stats or --annotator: the page has figures and names")
    project = find_project(run, runs)
    if web:
        _serve(project, host, port, served_as or [])
        return
    if stats:
        _print_stats(project, as_json)
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # to restore the terminal first
    try:
        _rank(project, annotator)
    except KeyboardInterrupt:
        raise Stopped("\nStopped. Saved rankings are kept; the same command resumes.") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_next_step(project)


def _serve(project: Project, host: str, port: int, names: list[str]) -> None:
    from lowrank_rlhf.dashboard.annotators import serve  # gradio takes seconds to import
    from lowrank_rlhf.dashboard.server import Address

    given = os.environ.get(PASSWORD_VARIABLE)
    password = given or secrets.token_urlsafe(12)

    def on_ready(url: str) -> None:
        shown = f"the value of {PASSWORD_VARIABLE}" if given else password
        echo(f"annotators' page: {url}\npassword: {shown}\nuser name: each annotator's name\nPress Ctrl-C to stop.")

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(project.folder.absolute(), Address(host, port, names), password, on_ready)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_next_step(project)


def _rank(project: Project, given: str | None) -> None:
    console, keys = Console(), keys_of_this_process()
    RankingLoop(project, project.store.spelling(_name(project, given, keys)), keys, console).run()


def _name(project: Project, given: str | None, keys: Keys) -> str:
    """Return the annotator's name: given, typed at a prompt, or the login name."""
    if given is not None:
        return annotator_name(given)
    login = _login()
    known = sorted({ranking.annotator for ranking in project.store.rankings()})
    if known:
        echo(f"ranked so far by: {', '.join(map(visible, known))}")
    answer = input(f"your name{f' [{login}]' if login else ''}: ").strip() if keys.live else ""
    if not (answer or login):
        raise UserError("login name not found; set --annotator NAME")
    if not answer:
        echo(f"ranking as {login}; use --annotator NAME for another name")
    return annotator_name(answer or login)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return ""


def _print_next_step(project: Project) -> None:
    if not project.enough:
        raise WaitingForPeople(f"{project_summary(project)} The same command resumes.")
    echo(project_summary(project))


def _print_stats(project: Project, as_json: bool) -> None:
    contents = project.store.contents()
    current = contents.current()
    alpha = krippendorff_alpha(current)
    withdrawn = [saved.ranking for saved in contents.history if saved.withdrawn]
    results = attention(contents)
    names = {*results, *(one.annotator for one in contents.skips)} | {
        ranking.annotator for ranking in (*current, *withdrawn)
    }
    checks = {one.check.annotator: _check_fields(one) for one in figures_of_each(contents, project.reward_scores)}
    rows: list[dict[str, Any]] = [
        {
            "annotator": name,
            **_fields(
                ranking_statistics([ranking for ranking in current if ranking.annotator == name], contents.answers)
            ),
            "skipped": sum(one.annotator == name for one in contents.skips),
            "taken_back": sum(ranking.annotator == name for ranking in withdrawn),
            **checks.get(name, {}),
        }
        for name in sorted(names)
    ]
    result: dict[str, Any] = {
        "prompts": len(contents.prompts),
        "prompts_ranked": project.store.ranked_prompts(),
        "prompts_needed": project.needed,
        "krippendorff_alpha": alpha,
        "alpha_means": ALPHA[alpha_level(alpha)],
        "all": _fields(ranking_statistics(current, contents.answers)),
        "guidelines": [
            {"version": version, "rankings": count}
            for version, count in Counter(ranking.guidelines for ranking in current).items()
        ],
        "annotators": rows,
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    _print_result(result)


def _fields(found: RankingStatistics) -> dict[str, Any]:
    position = found.position
    return {
        "rankings": found.rankings,
        "median_seconds": found.median_seconds,
        "tied_pairs": found.tied_pairs,
        "flagged": found.flagged,
        "best_shown_first": position.shown_first if position else None,
        "best_shown_first_by_chance": position.expected if position else None,
        "longer_preferred": found.longer_preferred,
        "longer_preferred_by_chance": 0.5 if found.uneven_comparisons else None,
        "comparisons_of_unequal_length": found.uneven_comparisons,
    }


def _check_fields(figures: AnnotatorFigures) -> dict[str, Any]:
    found, own, model = figures.check, figures.check.own_agreement, figures.with_reward_model
    return {
        "agreement": found.agreement.share if found.agreement else None,
        "pairs_with_others": found.agreement.pairs if found.agreement else 0,
        "own_agreement": own.share if own else None,
        "pairs_ranked_twice": own.pairs if own else 0,
        "reward_model_agreement": model.share if model else None,
        "pairs_with_reward_model": model.pairs if model else 0,
        "most_frequent_pattern": found.pattern,
        "most_frequent_place": found.place,
        "attention_checks": found.attention.checks if found.attention else 0,
        "check_pairs": found.attention.pairs if found.attention else 0,
        "check_pairs_right": found.attention.right if found.attention else 0,
        "unread": found.unread,
        "signs": list(found.signs),
    }


def _print_result(result: dict[str, Any]) -> None:
    echo(f"{result['prompts_ranked']} of {result['prompts']} prompts ranked; needed: {result['prompts_needed']}")
    table = Table("annotator", box=None, pad_edge=False)
    headings = ("ranked", "skipped", "undone", "median", "ties", "flagged", "first", "longer", "agree")
    for heading in headings:
        table.add_column(heading, justify="right")
    everyone = [{"annotator": "all", "skipped": "", "taken_back": "", **result["all"]}]
    for row in result["annotators"] + (everyone if len(result["annotators"]) > 1 else []):
        table.add_row(
            Text(visible(row["annotator"])),
            *(str(row[key]) for key in ("rankings", "skipped", "taken_back")),
            "-" if row["median_seconds"] is None else duration(row["median_seconds"]),
            _percent(row["tied_pairs"]),
            str(row["flagged"]),
            _percent(row["best_shown_first"]),
            _percent(row["longer_preferred"]),
            _percent(row.get("agreement")),
        )
    Console().print(table)
    for row in result["annotators"]:
        if row.get("pairs_ranked_twice"):
            of = f"{_percent(row['own_agreement'])} of {counted(row['pairs_ranked_twice'], 'pair')}"
            echo(f"{visible(row['annotator'])} ordered {of} as before, on prompts ranked twice")
        if row.get("pairs_with_reward_model"):
            pairs = counted(row["pairs_with_reward_model"], "held-out pair")
            of = f"{_percent(row['reward_model_agreement'])} of {pairs}"
            echo(f"{visible(row['annotator'])} ordered {of} as the reward model does")
        if row.get("attention_checks"):
            right, pairs = row["check_pairs_right"], row["check_pairs"]
            of = f"{right} of {pairs} pairs of {counted(row['attention_checks'], 'attention check')}"
            echo(f"{visible(row['annotator'])} ordered {of} as expected")
        if row.get("unread"):
            of = counted(row["unread"], "ranking")
            echo(f"{of} by {visible(row['annotator'])} with a long answer not scrolled to its end")
        for sign in row.get("signs", ()):
            shares = {"pattern": row["most_frequent_pattern"], "place": row["most_frequent_place"]}
            why = SIGNS[sign].format(**{name: _percent(share) for name, share in shares.items()})
            echo(f"check the rankings by {visible(row['annotator'])}: {why}")
    overall = result["all"]
    echo(
        f"by chance: the answer shown first is best in {_percent(overall['best_shown_first_by_chance'])}, "
        f"the longer of two answers is better in 50 % (of {overall['comparisons_of_unequal_length']} comparisons)"
    )
    if any(row["version"] for row in result["guidelines"]):
        counts = (f"{row['rankings']} with {row['version'] or 'none'}" for row in result["guidelines"])
        echo(f"rankings by version of the guidelines: {', '.join(counts)}")
    alpha = result["krippendorff_alpha"]
    echo(f"Krippendorff's alpha: {'-' if alpha is None else f'{alpha:.2f}'}, {result['alpha_means']}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
