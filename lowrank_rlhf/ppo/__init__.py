"""PPO's two halves: `collect` a rollout, `update` policy and critic on it."""
