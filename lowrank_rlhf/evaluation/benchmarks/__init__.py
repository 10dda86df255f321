"""Published benchmarks: RewardBench for the reward model."""
