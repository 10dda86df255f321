"""Run folder: records, results, checkpoints, logs, progress and process groups. Loads no model."""
