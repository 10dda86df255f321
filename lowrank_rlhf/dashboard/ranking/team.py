"""Section for the run's owner on ranking with others, as plain data: settings for all, and commands for the rest."""

import shlex

from lowrank_rlhf.dashboard.ranking.screen import Reply
from lowrank_rlhf.dashboard.ranking.text import say
from lowrank_rlhf.preferences.project import COMMAND, Project, open_project
from lowrank_rlhf.preferences.team.settings import TeamSettings, save_team_settings, team_settings


def team_words(project: Project, new: TeamSettings | None, annotator: str, language: str) -> Reply:
    """Save new settings if there are any, and return the current ones with the commands and a sentence on each.

    Without a run there are no settings.
    """
    if new is not None and project.settings is not None:
        save_team_settings(project.folder, new)
        project = open_project(project.folder)
    folder = shlex.quote(str(project.folder))
    commands = {
        "team.page": f"{COMMAND} label {folder} --web",
        "team.invite": f"{COMMAND} annotations invite {folder} NAME",
        "team.checks": f"{COMMAND} annotations checks {folder} --ranked-by {shlex.quote(annotator)} --number 10",
    }
    return {
        "team": {
            "settings": team_settings(project.settings).model_dump(mode="json") if project.settings else None,
            "commands": [{"means": say(key, language), "command": each} for key, each in commands.items()],
            "note": say("team.saved", language) if new else "",
        }
    }
