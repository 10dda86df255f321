"""`python -m lowrank_rlhf`."""

from lowrank_rlhf.cli import main

main()
