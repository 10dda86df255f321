"""Small PPO rollouts on tiny models."""

from tiny import random_tokens

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.rollout import RewardScale, Rollout, collect

SAMPLING = SampleConfig(max_new_tokens=7, temperature=0.9, batch_size=8)
SCALE = RewardScale("last", mean=0.3, std=1.7)
PROMPTS = random_tokens(5, [3, 6, 4, 9, 5, 7, 3, 4])


def make_ppo_config(**settings) -> PpoConfig:
    plain = {
        "batch_size": 8,
        "epochs": 1,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "target_kl": None,
        "critic_head": "zero",
    }
    return PpoConfig(**(plain | settings))


def start(roles: Roles) -> Roles:
    """Make the reference a copy of the policy, as at PPO's first step."""
    roles.copy(Role.POLICY, Role.REFERENCE)
    return roles


def rollout_of(roles: Roles, config: PpoConfig, seed: int = 1) -> Rollout:
    return collect(roles, PROMPTS, config, SAMPLING, SCALE, config.kl_coef, seed)
