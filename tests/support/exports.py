"""Exports of a session's run."""

import re
from pathlib import Path
from typing import Any

from lowrank_rlhf.export import export
from lowrank_rlhf.session import Session


def export_merged(session: Session, role: str, dtype: str, folder: Path) -> dict[str, Any]:
    prompts = export.first_prompts(session.run_dir, lambda: session.prompts[0])
    export.check_export(session.run_dir, role, folder)
    roles, progress, stop = session.load_roles(), session.progress, session.stop
    return export.export_merged(roles, session.run_dir, session.config, prompts, role, dtype, folder, progress, stop)


def export_reward(session: Session, dtype: str, folder: Path) -> dict[str, Any]:
    prompts = export.first_prompts(session.run_dir, lambda: session.prompts[0])
    export.check_export(session.run_dir, "reward", folder)
    roles, progress, stop = session.load_roles(), session.progress, session.stop
    return export.export_reward(roles, session.run_dir, session.config, prompts, dtype, folder, progress, stop)


def usage_code(folder: Path) -> str:
    """The Python of the card's section on use."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]
