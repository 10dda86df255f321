"""Training loops: SFT, the reward model, PPO, and TRL's DPO, RLOO and GRPO."""
