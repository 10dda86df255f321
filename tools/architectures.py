"""Write the list of architectures in docs/guides/model.md from the tables of the tests (tests/support/tiny.py).

    python tools/architectures.py

`tests/models/test_architectures.py` fails where the guide differs.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tiny import ARCHITECTURES, COMPOSITE, FURTHER, REFUSED, REFUSED_COMPOSITE
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

GUIDE = ROOT / "docs" / "guides" / "model.md"
BEGIN, END = "<!-- architectures: python tools/architectures.py -->\n", "<!-- end of architectures -->\n"


def main() -> None:
    """Replace the list in the guide."""
    GUIDE.write_text(updated(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(guide: str) -> str:
    """Return the text of the guide with the list of these tables between its two comments."""
    before, _, rest = guide.partition(BEGIN)
    return f"{before}{BEGIN}{architectures()}{END}{rest.partition(END)[2]}"


def architectures() -> str:
    """Return a Markdown list: what is tested, and the classes of transformers, sorted."""
    groups = {
        "all laws, also in NF4": _classes(ARCHITECTURES),
        "log-probabilities, gradients and sampling": _classes(FURTHER),
        "text alone, with adapters in the decoder only": list(COMPOSITE),
        "refused when they are loaded": [*_classes(REFUSED), *REFUSED_COMPOSITE],
    }
    return "".join(f"- {what}: {', '.join(f'`{name}`' for name in sorted(found))}.\n" for what, found in groups.items())


def _classes(kinds: dict) -> list[str]:
    return [MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]].__name__ for kind in kinds]


if __name__ == "__main__":
    main()
