"""`annotations invite` and the other commands of the owner of a ranking project."""

from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunArgument, RunsOption, echo
from lowrank_rlhf.commands.ranking.annotations import find_project
from lowrank_rlhf.commands.ranking.label import LOOPBACK, PORT
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.preferences.labelling import LABELS, annotator_name
from lowrank_rlhf.preferences.project import counted
from lowrank_rlhf.preferences.team.checks import add_checks, checks_from_rankings, read_checks_file, remove_checks
from lowrank_rlhf.preferences.team.decisions import Disagreement, decide, disagreements, order_of, undo_decision
from lowrank_rlhf.preferences.team.invitations import Invitations


def invite(
    run: RunArgument,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Annotator. Default: list all.")] = None,
    runs: RunsOption = Path("runs"),
    revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the person's link.")] = False,
    page: Annotated[
        str, typer.Option(metavar="URL", help="Address of the annotators' page, as annotators reach it.")
    ] = f"http://{LOOPBACK}:{PORT}",
) -> None:
    """Make a personal link to the page of `label --web`.

    The link logs in under this name without the password, and nobody else can use the name. It is printed once; only
    its hash is stored. A new link replaces the person's earlier one. --revoke ends the link and its sessions at once.

    \b
    Examples:
      python -m lowrank_rlhf annotations invite people anna
      python -m lowrank_rlhf annotations invite people anna --page https://rank.example.org
      python -m lowrank_rlhf annotations invite people anna --revoke
      python -m lowrank_rlhf annotations invite people
    """
    project = find_project(run, runs)
    invitations = Invitations(project.folder)
    if name is None:
        if revoke:
            raise UserError("--revoke requires NAME")
        for each in invitations.all():
            echo(f"{visible(each.annotator)}: {'revoked' if each.revoked else 'invited'}")
        return
    person = project.store.spelling(annotator_name(name))
    if not revoke:
        link = f"{page.rstrip('/')}/login#invite={invitations.invite(person)}"
        echo(f"link for {visible(person)}, printed only once; whoever has it ranks under this name:\n  {link}")
    elif invitations.revoke(person):
        echo(f"the link of {visible(person)} is revoked")
    else:
        raise UserError(f"{run}: {visible(person)!r} has no link")


def checks(
    run: RunArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="JSONL with `prompt`, `answers` and `ranks` (1 is the best).")
    ] = None,
    runs: RunsOption = Path("runs"),
    ranked_by: Annotated[
        str | None, typer.Option("--ranked-by", metavar="NAME", help="Take prompts that this annotator ordered.")
    ] = None,
    number: Annotated[int | None, typer.Option(min=1, help="With --ranked-by: take at most this number.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Show no checks any more.")] = False,
) -> None:
    """Add attention checks: prompts with a known order.

    They are mixed in at the share rank.checks, and rankings of them train nothing. `label RUN --stats` and the tab Rank
    show each annotator's result. --remove also makes the prompts taken from rankings ordinary ones again.

    \b
    Examples:
      python -m lowrank_rlhf annotations checks people checks.jsonl
      python -m lowrank_rlhf annotations checks people --ranked-by me --number 10
      python -m lowrank_rlhf annotations checks people --remove
    """
    if (file is not None) + (ranked_by is not None) + remove != 1:
        raise UserError("give one of FILE, --ranked-by NAME and --remove")
    if number is not None and ranked_by is None:
        raise UserError("--number requires --ranked-by")
    store = find_project(run, runs).store
    if file is not None:
        added, changed = add_checks(store, read_checks_file(file))
        echo(f"{counted(added, 'attention check')} added")
        if changed:
            echo(f"{counted(changed, 'attention check')} with another order than before: earlier results change, too")
    elif ranked_by is not None:
        ranked_by = store.spelling(annotator_name(ranked_by))
        if not (count := checks_from_rankings(store, ranked_by, number)):
            raise UserError(f"{run}: no prompts with an order by {visible(ranked_by)!r}")
        echo(f"{counted(count, 'prompt')} made attention checks; no ranking of them is learned from any more")
    else:
        retired, restored = remove_checks(store)
        echo(f"{counted(retired, 'attention check')} shown no more; {counted(restored, 'prompt')} restored")


def list_disagreements(run: RunArgument, runs: RunsOption = Path("runs")) -> None:
    """List the prompts that annotators order differently.

    The least alike come first, those decided last. Answers are numbered as in the store; each annotator's order, flags
    and better answer follow.

    \b
    Examples:
      python -m lowrank_rlhf annotations disputes people
    """
    found = disagreements(find_project(run, runs).store.contents())
    for one in found:
        echo("\n".join(_lines(one)))
    if not found:
        echo("no two annotators order a pair of answers differently")


def _lines(found: Disagreement) -> list[str]:
    item = found.item
    lines = [f"{visible(item.prompt.id)}: {found.same} of {found.pairs} pairs alike", visible(item.prompt.conversation)]
    lines += [f"  {label}: {visible(answer.text)}" for label, answer in zip(LABELS, item.answers, strict=False)]
    for ranking in found.rankings:
        remarks = [*ranking.flags, *([f"wrote: {ranking.written}"] if ranking.written else [])]
        lines.append(visible(f"  {ranking.annotator}: {'; '.join([order_of(ranking, item) or '-', *remarks])}"))
    if found.decision:
        lines.append(visible(f"  decided by {found.decision.annotator}: {order_of(found.decision, item)}"))
    return [*lines, ""]


def decide_order(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Id, as `annotations disputes` lists it.")],
    order: Annotated[
        str | None, typer.Argument(metavar="ORDER", help="Best first, such as 2,1=3 for 2 > 1 = 3.")
    ] = None,
    runs: RunsOption = Path("runs"),
    annotator: Annotated[str, typer.Option("--annotator", metavar="NAME", help="Name of who decides.")] = "owner",
    undo: Annotated[bool, typer.Option("--undo", help="Delete the decision.")] = False,
) -> None:
    """Decide the order of a prompt's answers.

    Training uses it instead of the annotators' rankings. They are kept, still measure agreement, and count again after
    --undo.

    \b
    Examples:
      python -m lowrank_rlhf annotations decide people p00007 2,1=3
      python -m lowrank_rlhf annotations decide people p00007 --undo
    """
    if (order is None) != undo:
        raise UserError("give either ORDER or --undo")
    store = find_project(run, runs).store
    if order is not None:
        decide(store, prompt, order, annotator_name(annotator))
        echo(f"decided: {visible(prompt)}; `annotations decide {run} {visible(prompt)} --undo` restores the rankings")
    elif undo_decision(store, prompt):
        echo(f"decision on {visible(prompt)} undone")
    else:
        raise UserError(f"{run}: no decision on {visible(prompt)!r}")
