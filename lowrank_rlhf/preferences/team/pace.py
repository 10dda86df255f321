"""Pace that a deadline requires."""

import math
from datetime import date
from typing import NamedTuple


class DeadlinePace(NamedTuple):
    """Prompts left until a deadline, and days left with today; none after the deadline."""

    left: int
    days: int
    deadline: date

    @property
    def each_day(self) -> int:
        """Prompts to rank each day; 0 after the deadline."""
        return math.ceil(self.left / self.days) if self.days else 0


def pace_until(deadline: date | None, left: int, today: date | None = None) -> DeadlinePace | None:
    """Return the pace for what is left; None without a deadline or with nothing left."""
    if deadline is None or left <= 0:
        return None
    return DeadlinePace(left, max(0, (deadline - (today or date.today())).days + 1), deadline)
