"""The work of each stage, and the time to go that follows from it."""

import json
from dataclasses import replace

import pytest
from tiny_run import make_config, make_session, write_prompts

from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.planner.compute_cost import Amounts, amounts, compute_cost, seconds_to_go
from lowrank_rlhf.sources.model_shape import Shape
from lowrank_rlhf.sources.tokenizer import local_tokenizer

# 2 x 4 x (4 + 2) + 3 x 4 x 8 = 144 weights a layer; 2 x 10 x 4 = 80 operations to project a token.
SHAPE = Shape("llama", layers=2, hidden=4, mlp=8, query=4, key_value=2, vocabulary=10, tied=True)
COUNTS = Amounts(
    training=10, validation=2, test=5, demonstrations=20, answers=30, prompt_tokens=6, longest_prompt=9,
    answer_tokens=4, longest_demonstration=14,
)  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def test_costs_by_hand(config, tmp_path) -> None:
    read = 10 * 2 * 288  # ten tokens through both layers
    sampled = read * 6 / 10 + 3 * 4 * (2 * 288 + 80)
    assert compute_cost("sft", config, COUNTS, SHAPE) == 20 * 2 * 3 * 2 * (read + 10 * 80)
    assert compute_cost("sample", config, COUNTS, SHAPE) == 30 * sampled == 339_840
    assert compute_cost("rank", config, COUNTS, SHAPE) == 0
    assert compute_cost("reward", config, COUNTS, SHAPE) == 30 * (read + 2 * 3 * 2 * read)
    met = sampled + 2 * (read + 4 * 80) + 2 * read
    learnt = 3 * 2 * (read + 4 * 80) + 3 * 2 * read
    assert compute_cost("ppo", config, COUNTS, SHAPE) == 4 * 4 * (met + learnt) + 3 * 2 * met  # two validation prompts
    plain = {"evaluate__yardstick_prompts": 0}
    assert compute_cost("evaluate", make_config(tmp_path, **plain), COUNTS, SHAPE) == 5 * (met + sampled) == 231_680
    thrice = make_config(tmp_path, evaluate__answers_per_prompt=3, **plain)
    assert compute_cost("evaluate", thrice, COUNTS, SHAPE) == 3 * 231_680
    yardstick = sampled + read  # best of 8 and three greedy answers, each read by the reward model
    assert compute_cost("evaluate", config, COUNTS, SHAPE) == 231_680 + 5 * 11 * yardstick
    few = make_config(tmp_path, evaluate__yardstick_prompts=2)
    assert compute_cost("evaluate", few, COUNTS, SHAPE) == 231_680 + 2 * 11 * yardstick


def test_layers_without_adapters_run_once_for_all_roles_and_have_no_backward(tmp_path) -> None:
    config = make_config(tmp_path, lora__last_layers=1, evaluate__yardstick_prompts=0)
    half = 10 * 2 * 144
    sampled = 2 * half * 6 / 10 + 3 * 4 * (2 * 288 + 80)
    met = sampled + half + 2 * (half + 4 * 80) + 2 * half
    assert compute_cost("evaluate", config, COUNTS, SHAPE) == 5 * (met + sampled)
    assert compute_cost("sft", config, COUNTS, SHAPE) == 40 * 3 * (2 * half + 800 + half + 800)


def test_an_adapter_from_elsewhere_costs_no_sft(tmp_path) -> None:
    config = make_config(tmp_path, sft__source="base")
    counts = amounts(config, make_session(config, tmp_path).run_dir, RunData(config))
    assert compute_cost("sft", config, counts, SHAPE) == 0


class TestAmounts:
    def test_of_the_built_in_prompts(self, tmp_path) -> None:
        config = make_config(
            tmp_path, data__held_out=20, sample__prompts=10, model__max_length=96, sample__max_new_tokens=48
        )
        counts = amounts(config, make_session(config, tmp_path).run_dir, RunData(config))
        shown = RunData(config).prompts.demonstrations
        assert (counts.training, counts.validation, counts.test) == (600, 10, 10)
        assert counts.demonstrations == len(shown)
        assert counts.answers == 10 * 3
        # The quickstart's tokenizer makes 16 tokens of a sampled answer, on average (done/sample.json of seed 26).
        assert counts.answer_tokens == pytest.approx(16, rel=0.5)
        assert counts.tokens == counts.prompt_tokens + counts.answer_tokens

    def test_ranked_answers_are_counted_where_they_are(self, config, tmp_path) -> None:
        run_dir = make_session(config, tmp_path).run_dir
        lines = "".join(json.dumps({"id": i}) + "\n" for i in range(7))
        (run_dir.path / "answers.jsonl").write_text(lines)
        assert amounts(config, run_dir, RunData(config)).answers == 7

    def test_answers_of_a_data_set_are_counted_in_its_file(self, tmp_path) -> None:
        path = tmp_path / "pairs.jsonl"
        rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = make_config(tmp_path, rank__source="dataset", rank__dataset=str(path))
        assert amounts(config, make_session(config, tmp_path).run_dir, RunData(config)).answers == 6

    def test_they_are_read_as_the_run_reads_them(self, tmp_path) -> None:
        """A bad row that may be left out, and a format that must be named: of four rows three count."""
        path = tmp_path / "pairs.jsonl"
        both = {"chosen": "yes", "rejected": "no", "responses": ["yes", "no"], "scores": [1, 2]}
        rows = [{"prompt": f"question {i}", **both} for i in range(3)]
        rows.append(rows[0] | {"chosen": ""})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = make_config(
            tmp_path,
            rank__source="dataset",
            rank__dataset=str(path),
            rank__format="preference",
            data__skip_bad_rows=0.25,
        )
        assert amounts(config, make_session(config, tmp_path).run_dir, RunData(config)).answers == 6

    def test_a_tokenizer_tells_lengths_better_than_bytes_do(self, tiny_folder, tmp_path) -> None:
        config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl", 6), sft__examples=2)
        session = make_session(config, tmp_path)
        run_dir, data = session.run_dir, RunData(config)
        counts = amounts(config, run_dir, data, local_tokenizer(config.model))
        shown = data.prompts.demonstrations
        base = session.load_roles().base
        prompts = [len(base.encode_prompt(prompt)) for prompt in data.prompts.training]
        answers = [len(base.encode_response(row.response)) for row in shown]
        whole = [
            len(session.load_roles().base.encode_prompt(row.prompt)) + n
            for row, n in zip(shown[:2], answers, strict=False)
        ]
        assert counts.longest_prompt == max(prompts)
        assert counts.answer_tokens == min(6, sum(answers) / len(answers))
        assert counts.longest_demonstration == max(whole)
        assert amounts(config, run_dir, data).longest_demonstration != max(whole)

    def test_no_token_beyond_the_limits(self, tmp_path) -> None:
        config = make_config(tmp_path, sample__max_new_tokens=6, model__max_length=16)
        counts = amounts(config, make_session(config, tmp_path).run_dir, RunData(config))
        assert counts.answer_tokens == 6
        assert counts.longest_prompt <= 10
        assert replace(counts, answer_tokens=1).tokens == counts.prompt_tokens + 1


@pytest.mark.parametrize(("width", "rows"), [(10, 12), (14, 6), (25, 4), (40, 3), (60, 2), (61, 1), (500, 1)])
def test_rows_of_a_pass_divide_the_batch_and_fit(width: int, rows: int) -> None:
    assert rows_per_pass(12, width, 120) == rows


def test_seconds_to_go() -> None:
    assert seconds_to_go({}, {"sft": 5.0, "sample": 2.0}) is None
    assert seconds_to_go({"rank": 5.0}, {"rank": 0.0, "reward": 9.0}) is None  # no model ran: no pace
    # 60 units took 30 s, so the 210 units of reward take 105.
    assert seconds_to_go({"sample": 30.0, "rank": 9.0}, {"sample": 60.0, "rank": 0.0, "reward": 210.0}) == 105
    assert seconds_to_go({"sample": 30.0}, {"sample": 60.0, "rank": 0.0}) is None  # nothing left that takes time
