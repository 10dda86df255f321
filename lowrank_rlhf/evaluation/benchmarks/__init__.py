"""Published benchmarks: RewardBench for the reward model, lm-evaluation-harness for the others."""
