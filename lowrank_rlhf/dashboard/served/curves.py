"""Script that zooms, smooths and saves curves: on the page, and in reports while the page shows them.

Saved reports contain no script: their curves show values under the pointer by CSS alone.
"""

import base64
import hashlib
from pathlib import Path

_STATIC = Path(__file__).parents[1] / "static"
CURVES = "".join((_STATIC / name).read_text(encoding="utf-8") for name in ("curve_axes.js", "curves.js"))
_IN_REPORT = (
    CURVES
    + """
for (const plots of document.querySelectorAll('.plots')) connectCurves(plots, () => plots.closest('[lang]').lang);
"""
)
_HASH = base64.b64encode(hashlib.sha256(_IN_REPORT.encode()).digest()).decode()
# A report contains text by models: it may load and send nothing, and run this script alone, as a page of no origin.
# Its CSV links hold their data.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src data:; "
    "sandbox allow-downloads allow-scripts; frame-ancestors 'self'"
)
"""Content-Security-Policy of a report."""


def with_curves(report: str) -> str:
    """Return the HTML of a report with the script."""
    return f"{report}<script>{_IN_REPORT}</script>"
