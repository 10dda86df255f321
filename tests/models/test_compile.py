"""Compilation of a decoder layer by torch.compile: roles, shapes and switches of role need no graph of their own."""

from collections.abc import Callable

import torch
from tiny import make_roles, random_tokens
from tiny_ppo import SAMPLING, SCALE, make_ppo_config, start

from benchmarks.operations import attention_of_gpus
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.training import rollout as rollout_module
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import collect


def test_four_roles_and_all_shapes_need_two_graphs(tiny_base, monkeypatch) -> None:
    """One to read and one to train, over a whole PPO step; `fullgraph` raises where a graph would break.

    It is the upper of two layers, whose input needs a gradient in every training pass.
    """
    config, graphs, shapes = make_ppo_config(epochs=2, minibatches=2), [], set()
    prompts = random_tokens(5, [9, 9, 4, 4, 4, 7, 7, 3, 3, 3])
    sampling = SAMPLING.model_copy(update={"max_new_tokens": 8})
    roles = start(make_roles(tiny_base("nf4")))
    roles.base.limits.tokens = 36  # micro-batches of two rows and of three; one row alone would have a graph of its own
    answers = sample_answers(roles, Role.POLICY, prompts, sampling, 0)  # on merged weights, which are not compiled
    monkeypatch.setattr(rollout_module, "sample_answers", lambda *_: answers)
    lower, upper = roles.decoder.layers
    lower.register_forward_pre_hook(lambda _, given: shapes.add(given[0].shape))

    def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    upper.compile(backend=count, dynamic=True, fullgraph=True)
    try:
        with attention_of_gpus(roles):
            rollout = collect(roles, prompts, config, sampling, SCALE, 0.05, 0)
            figures = update(roles, Optimizers.create(roles, config), rollout, config, SCALE, 0.9, 0)
    finally:
        torch.compiler.reset()
    assert figures["policy/optimizer_steps"] == 4
    assert figures["policy/first_ratio_error"] == 0
    assert {rows for rows, *_ in shapes} == {2, 3}
    assert {width for _, width, _ in shapes} == {17, 15, 12, 11}
    assert len(graphs) == 2
