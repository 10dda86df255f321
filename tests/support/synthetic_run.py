"""Metrics, results and answers of a healthy run, made up."""

import math
import random
from typing import Any

from lowrank_rlhf.run.results import Results

STEPS = 50


def ppo_rows() -> list[dict[str, Any]]:
    """A healthy PPO run."""
    noise = random.Random(0)
    rows = []
    for step in range(1, STEPS + 1):
        done = step / STEPS
        row: dict[str, Any] = {
            "stage": "ppo",
            "step": step,
            "objective/kl": 5 * done + noise.gauss(0, 0.15) * done,
            "objective/scores": 1.4 * done + noise.gauss(0, 0.15),
            "objective/entropy": 2.3 - 0.7 * done + noise.gauss(0, 0.05),
            "policy/clipfrac": 0.05 + 0.05 * noise.random(),
            "policy/approxkl": 0.008 * noise.random(),
            "policy/final_approxkl": 0.01 + 0.008 * (step % 2),
            "policy/ratio": 1.0 + (0.002 * noise.random() if step > 1 else 0),
            "policy/first_ratio_error": 0.0,
            "value/loss": 0.4 / step,
            "value/explained_variance": None if step == 1 else 0.6 * done,
            "response/length_mean": 24 + 3 * done + noise.gauss(0, 0.8),
            "response/eos_rate": 0.99 - 0.02 * done,
        }
        if step % 10 == 0:
            scores = [0.35 + 0.3 * done + noise.gauss(0, 0.2) for _ in range(32)]
            row |= {"eval/score": 1.3 * done, "eval/judge": sum(scores) / 32, "eval/kl": 4.6 * done}
            row |= {"eval/judge_scores": scores}
        rows.append(row)
    return rows


def metrics_rows() -> list[dict[str, Any]]:
    """A healthy run of all stages."""
    noise = random.Random(1)
    sft = [{"stage": "sft", "step": s, "loss": 1.2 + 1.5 * math.exp(-s / 12) + noise.gauss(0, 0.06)} for s in range(70)]
    reward = [
        {"stage": "reward", "step": s, "loss": 0.69 - 0.004 * s, "accuracy": min(1, 0.5 + 0.006 * s)} for s in range(40)
    ]
    return [*sft, *reward, *ppo_rows()]


def all_summaries() -> dict[str, dict[str, Any]]:
    """The summaries of a finished run."""
    noise = random.Random(2)
    return {
        "sft": {"examples": 506, "steps": 64, "loss": 1.2345},
        "reward": {
            "pairs_train": 2031,
            "pairs_held_out": 511,
            "prompts_held_out": 101,
            "accuracy": 0.71,
            "accuracy_interval": [0.66, 0.76],
            "longer_wins": 0.58,
            "longer_wins_interval": [0.53, 0.63],
            "over_length": 0.13,
            "over_length_interval": [0.06, 0.2],
            "prompt_audit": {
                "prompts": 100,
                "pairs": 505,
                "accuracy": 0.7,
                "emptied": {"accuracy": 0.64, "interval": [0.6, 0.69], "lost": 0.06, "lost_interval": [0.01, 0.11]},
                "shuffled": {"accuracy": 0.66, "interval": [0.6, 0.7], "lost": 0.04, "lost_interval": [-0.01, 0.09]},
            },
            "ece": 0.043,
            "reliability": [
                {"low": 0.5, "high": 0.6, "count": 190, "probability": 0.55, "accuracy": 0.57},
                {"low": 0.6, "high": 0.7, "count": 150, "probability": 0.65, "accuracy": 0.7},
                {"low": 0.7, "high": 0.8, "count": 100, "probability": 0.75, "accuracy": 0.8},
                {"low": 0.8, "high": 0.9, "count": 71, "probability": 0.84, "accuracy": 0.9},
            ],
            "margins": [noise.gauss(0.5, 0.8) for _ in range(511)],
            "length_correlation": 0.22,
            "score_mean": 0.12,
            "score_std": 0.94,
            "verdict": "Better than chance and better than preferring the longer answer.",
            "claims": [
                {"id": "reward_reloads", "claim": "a reloaded head gives the same scores", "figure": 0.0, "holds": True}
            ],
        },
        "ppo": {
            "steps": STEPS,
            "best_step": 40,
            "seconds_per_step": 5.7,
            "claims": [
                {"id": "kl_is_zero", "claim": "KL to SFT is 0 at step 0", "figure": 0.0, "holds": True},
                {
                    "id": "base_unchanged",
                    "claim": "the base's checksum is unchanged",
                    "figure": "9f3a11c2",
                    "holds": True,
                },
            ],
        },
        "evaluate": {
            "prompts": 64,
            "judge": "simulated-annotator",
            "second_judge": "plain-language",
            "table": [
                {"id": "mean_score", "judge": "simulated-annotator", "sft": 0.41, "policy": 0.66},
                {
                    "id": "win_rate",
                    "judge": "plain-language",
                    "sft": 0.48,
                    "policy": 0.52,
                    "interval": [0.42, 0.62],
                },
                {"id": "length_tokens", "sft": 24.1, "policy": 26.9},
                {"id": "distinct_2", "sft": 0.71, "policy": 0.66},
                {"id": "top_opener", "sft": 0.06, "policy": 0.14, "openers": ["you can", "of course"]},
            ],
            "win_rate": 0.828,
            "win_rate_interval": [0.742, 0.906],
            "mean_shift": 1.31,
            "kl_per_answer": 4.62,
            "kl_mean_interval": [4.1, 5.2],
            "temperature": 0.7,
            "kl_at_temperature_1": 3.51,
            "kl_at_temperature_1_interval": [3.1, 3.9],
            "length_controlled_win_rate": 0.774,
            "length_controlled_interval": [0.68, 0.86],
            "favoured_words": {"words": ["glad", "place"], "before": 0.2, "after": 0.3, "p": 0.2},
            "variety": {"before": 0.72, "after": 0.7, "p": 0.3},
        },
    }


def eval_rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows of eval.jsonl."""
    return [
        {
            "prompt_id": f"p{index}",
            "prompt": f"How do I keep {'basil, mint and thyme'} alive through a dark winter? ({index})",
            "sft": "Put it somewhere and water it. " * (1 + index % 3),
            "policy": "Of course! Keep the basil by your brightest window and water it when the soil feels dry.\n"
            "Mint and thyme are glad of a cool place.",
            "judge_sft": 0.35,
            "judge_policy": 0.8,
            "second_sft": 0.5,
            "second_policy": None,
            "score_sft": -0.21,
            "score_policy": 1.402,
            "kl": 4.4,
        }
        for index in range(count)
    ]


def yardsticks() -> dict[str, Any]:
    """Yardsticks for the result of `evaluate`, of a capped best-of-n and two judges."""

    def row(name: str, mean: float, win_rate: float | None) -> dict[str, Any]:
        interval = None if win_rate is None else [win_rate - 0.1, win_rate + 0.1]
        judged = {"judge": "plain-language", "win_rate": win_rate, "win_rate_interval": interval}
        own = {"judge": "reward model", "mean_score": mean, "win_rate": win_rate, "win_rate_interval": interval}
        return {"id": name, "scores": [judged, own]}

    rows = [
        row("sft_sampled", 0.01, None),
        row("sft_greedy", 0.22, 0.61),
        row("best_of_n", 0.93, 0.77),
        row("policy_sampled", 1.04, 0.8),
        row("policy_greedy", 1.15, 0.82),
        row("base_greedy", -1.26, 0.24),
    ]
    return {"prompts": 32, "n": 8, "best_of_n_kl": 1.2044, "capped": True, "rows": rows}


def with_greedy(row: dict[str, Any]) -> dict[str, Any]:
    """The row with greedy answers too."""
    greedy = {"greedy_sft": "Most likely before.", "greedy_policy": "Most likely after."}
    return row | greedy | {"judge_greedy_sft": 0.45, "score_greedy_policy": 1.77}


def results(summaries: dict[str, dict[str, Any]] | None = None) -> Results:
    """The summaries as typed results; by default of the finished run."""
    return Results.model_validate(all_summaries() if summaries is None else summaries)
