"""Opens the dashboard: `python app.py`, the same as `python -m lowrank_rlhf dashboard`; `--help` shows the options."""

import sys

from lowrank_rlhf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "dashboard")
    main()
