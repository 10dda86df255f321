"""Figures added by the final evaluation: KL at temperature 1 by plain forwards, length and wording from made pairs."""

import pytest
import torch
from tiny import DEVICE, random_tokens, randomise, snapshot
from tiny_finished import finished_run
from tiny_run import make_config, make_session

from lowrank_rlhf.evaluation.answer_pair import AnswerPair, Verdict
from lowrank_rlhf.evaluation.final_checks import kl_at_temperature, with_final_checks
from lowrank_rlhf.evaluation.match import measure_pairs
from lowrank_rlhf.maths.length_control import length_controlled_win_rate
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.statistics import bootstrap_interval
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import read_tensors, save_role
from lowrank_rlhf.run.records import Message, Prompt, Sample
from lowrank_rlhf.run.results import EvaluateResult
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import evaluate


@pytest.fixture
def session(tiny_folder, tmp_path) -> Session:
    """Policy and reference with different random weights; answers are sampled at 0.7."""
    session = make_session(make_config(tiny_folder(), sample__temperature=0.7), tmp_path)
    for seed, role in enumerate((Role.POLICY, Role.REFERENCE)):
        randomise(session.load_roles(), role, seed)
    return session


def made_pairs(session: Session, answers_per_prompt: int = 2) -> list[AnswerPair]:
    """Three prompts; the policy's answers are longer, and all praise."""
    prompts, baseline, candidate = [], [], []
    tokens = random_tokens(0, [5] * 12)
    for number in range(3):
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=f"question {number}"),))
        for answer in range(answers_per_prompt):
            name, at = f"p{number}-{answer}", number * answers_per_prompt + answer
            prompts.append(prompt)
            baseline.append(Sample(id=name, prompt_id=prompt.id, text=f"short one {at}", tokens=tuple(tokens[at])))
            long = f"a happy answer {at}" + " more" * at
            candidate.append(Sample(id=name, prompt_id=prompt.id, text=long, tokens=tuple(tokens[6 + at])))
    pairs = measure_pairs(session.load_roles(), prompts, baseline, candidate, session.config.sample, None)
    verdicts = [Verdict(win) for win in (1.0, 0.5, 0.0, 1.0, 1.0, 1.0)]
    return [
        AnswerPair(pair.prompt, pair.baseline, pair.candidate, pair.kl, {"judge": verdict})
        for pair, verdict in zip(pairs, verdicts, strict=False)
    ]


def logprob(roles: Roles, role: Role, pair: AnswerPair, temperature: float) -> float:
    """log p(answer | prompt) from the logits of this one row."""
    prompt, response = roles.base.encode_prompt(pair.prompt), list(pair.candidate.tokens or ())
    ids = torch.tensor([[*prompt, *response]], device=DEVICE)
    with torch.no_grad(), roles.acting_as(role):
        states = roles.decoder(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        logits = roles.base.model.get_output_embeddings()(states).double() / temperature
    return float(logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum())


def test_kl_at_another_temperature_by_plain_forwards(session) -> None:
    pairs, roles = made_pairs(session), session.load_roles()
    again = kl_at_temperature(roles, pairs, session.config.sample.max_new_tokens, 1.0)
    for pair, measured in zip(pairs, again, strict=True):
        for found, temperature in ((pair.kl, 0.7), (measured.kl, 1.0)):
            policy, reference = (logprob(roles, role, pair, temperature) for role in (Role.POLICY, Role.REFERENCE))
            assert found == pytest.approx(policy - reference, abs=1e-4)
        assert abs(pair.kl - measured.kl) > 1e-3
        assert measured.verdicts == pair.verdicts


def test_the_stage_compares_the_kept_policy_with_sft(tiny_folder, tmp_path) -> None:
    session = finished_run(tiny_folder(), tmp_path, quantization="none")
    roles, adapters = session.load_roles(), session.run_dir.artifact("adapters")
    randomise(roles, Role.POLICY, 9)
    save_role(roles, Role.POLICY, adapters / "policy-last")
    data, places = session.data.prompts, (session.run_dir, session.progress, session.stop)
    evaluate._load_models(roles, session.config, data, *places)
    for role, name in ((Role.REFERENCE, "sft"), (Role.POLICY, "policy")):
        saved, loaded = read_tensors(adapters / name / "adapter_model.safetensors"), snapshot(roles, role)
        assert saved.keys() == loaded.keys()
        assert all(loaded[key].equal(weight.to(DEVICE)) for key, weight in saved.items())


def test_final_checks_go_by_prompt(session) -> None:
    pairs = made_pairs(session)
    plain = EvaluateResult(prompts=3, judge="x", win_rate=0.75)
    found = with_final_checks(plain, session.load_roles(), pairs, session.config)
    at_1 = kl_at_temperature(session.load_roles(), pairs, session.config.sample.max_new_tokens, 1.0)
    assert found.temperature == 0.7
    assert found.kl_at_temperature_1 == pytest.approx(sum(pair.kl for pair in at_1) / 6, abs=1e-5)
    by_prompt = [(first.kl + second.kl) / 2 for first, second in zip(at_1[::2], at_1[1::2], strict=True)]
    interval = bootstrap_interval(by_prompt, 100, derive_seed(1, "bootstrap"))
    assert found.kl_at_temperature_1_interval == pytest.approx(interval, abs=1e-5)
    won = [[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]]
    lengths = [
        [[len(side.text) for side in (getattr(pair, name) for pair in pairs[start : start + 2])] for start in (0, 2, 4)]
        for name in ("candidate", "baseline")
    ]
    expected = length_controlled_win_rate(won, *lengths, 100, derive_seed(1, "bootstrap"))
    assert found.length_controlled_win_rate == pytest.approx(expected.win_rate)
    assert found.length_controlled_interval == pytest.approx(expected.interval)
    assert found.favoured_words is not None
    assert set(found.favoured_words.words) == {"happy", "answer"}
    assert (found.favoured_words.before, found.favoured_words.after) == (0, 1)
    assert found.win_rate == 0.75
