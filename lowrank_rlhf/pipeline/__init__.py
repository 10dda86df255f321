"""Run stages in order: fingerprints, stale stages, resuming, several processes, and checks before a run."""
