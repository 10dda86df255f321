"""What holds for all masks, sequences, configs and rows, and not only for those that somebody thought of."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lowrank_rlhf.config.loading import dump_config, parse_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.data.readers.json_lines import json_rows
from lowrank_rlhf.data.readers.rows import Row
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.masking import last_true, masked_mean, masked_sum, pool, whiten
from lowrank_rlhf.maths.sequences import cut_minibatches, micro_batches, pack

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.floats(-8, 8, width=32)
tokens = st.lists(st.integers(1, 99), min_size=1, max_size=7)
pairs = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6)
# Strings as JSON files hold them: any character, no halves of one.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@st.composite
def masked(draw: st.DrawFn, responses: bool = False) -> tuple[list[list[float]], list[list[bool]]]:
    """Values and a mask of the same shape; with `responses` each row has at least one True."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    if responses:
        for row in mask:
            row[draw(st.integers(0, width - 1))] = True
    found = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=rows, max_size=rows))
    return found, mask


def kept(found: list[list[float]], mask: list[list[bool]]) -> list[list[float]]:
    """The values that count, row by row."""
    return [[value for value, true in zip(*both, strict=True) if true] for both in zip(found, mask, strict=True)]


def with_junk(found: list[list[float]], mask: list[list[bool]], junk: float) -> torch.Tensor:
    """The values, with something else where the mask is False."""
    return torch.where(torch.tensor(mask), torch.tensor(found), junk)


def outcome(read: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the `UserError` with which it refuses."""
    try:
        return read(*arguments)
    except UserError as error:
        return error


class TestMasks:
    @few
    @given(masked(), st.sampled_from([0.0, 1e30, math.inf, math.nan]))
    def test_sums_and_means_are_those_of_what_counts(self, drawn, junk) -> None:
        values, mask = with_junk(*drawn, junk), torch.tensor(drawn[1])
        rows = kept(*drawn)
        torch.testing.assert_close(masked_sum(values, mask), torch.tensor([math.fsum(row) for row in rows]))
        every = [value for row in rows for value in row]
        torch.testing.assert_close(masked_mean(values, mask), torch.tensor(math.fsum(every) / max(1, len(every))))

    @few
    @given(masked(), st.sampled_from([0.0, 1e30, math.inf, math.nan]), st.floats(-5, 5), st.floats(0.5, 3))
    def test_whitening_forgets_shift_and_scale_and_what_is_masked(self, drawn, junk, shift, scale) -> None:
        values, mask = with_junk(*drawn, junk), torch.tensor(drawn[1])
        every = torch.tensor([value for row in kept(*drawn) for value in row])
        white = whiten(values, mask)
        assert bool((white[~mask] == 0).all())
        if len(every) > 1 and every.std() > 0.1:
            expected = (every - every.mean()) / every.std()
            torch.testing.assert_close(white[mask], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(whiten(values * scale + shift, mask), white, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(whiten(values, mask, shift_mean=False)[mask], expected + every.mean())

    @few
    @given(masked(responses=True), numbers)
    def test_pooling_reads_the_response_alone(self, drawn, junk) -> None:
        values, mask, rows = with_junk(*drawn, junk), torch.tensor(drawn[1]), kept(*drawn)
        last = [max(place for place, true in enumerate(row) if true) for row in drawn[1]]
        assert last_true(mask).tolist() == last
        assert pool(values, mask, "last").tolist() == [row[-1] for row in rows]
        mean = torch.tensor([math.fsum(row) / len(row) for row in rows])
        torch.testing.assert_close(pool(values, mask, "mean"), mean, rtol=1e-5, atol=1e-5)
        columns = torch.stack([values, -2 * values], dim=-1)
        torch.testing.assert_close(
            pool(columns, mask, "mean"), torch.stack([mean, -2 * mean], -1), rtol=1e-5, atol=1e-5
        )


class TestSequences:
    @few
    @given(pairs, st.data())
    def test_what_is_packed_is_all_there_and_nothing_else(self, drawn, data) -> None:
        prompts, responses = [list(one) for one in zip(*drawn, strict=True)]
        packed = pack(prompts, responses, pad=0)
        order = data.draw(st.lists(st.integers(0, len(drawn) - 1), min_size=1, max_size=6))
        for batch, index in ((packed, range(len(drawn))), (packed.rows(order), order)):
            assert batch.ids.shape[1] == max(batch.lengths())
            assert bool((batch.ids[~batch.attention] == 0).all())
            assert not bool((batch.response & ~batch.attention).any())
            for row, which in enumerate(index):
                assert batch.ids[row][batch.attention[row]].tolist() == prompts[which] + responses[which]
                assert batch.ids[row][batch.response[row]].tolist() == responses[which]
                assert batch.lengths()[row] == len(prompts[which]) + len(responses[which])

    @few
    @given(st.lists(st.integers(1, 6), min_size=1, max_size=24), st.integers(1, 30))
    def test_micro_batches_hold_each_row_once_and_fit(self, lengths, budget) -> None:
        groups = micro_batches(lengths, budget)
        assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
        padded = [len(group) * max(lengths[row] for row in group) for group in groups]
        assert all(size <= budget or len(group) == 1 for size, group in zip(padded, groups, strict=True))
        in_order = [lengths[row] for group in groups for row in group]
        assert in_order == sorted(in_order, reverse=True)
        for group in groups[:-1]:  # none that could have taken one more
            assert (len(group) + 1) * lengths[group[0]] > budget

    @few
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 120))
    def test_minibatches_are_equal_parts_side_by_side(self, part, minibatches, budget) -> None:
        cut = cut_minibatches(part * minibatches, minibatches, budget)
        rows = [sorted(row for group in groups for row in group) for groups in cut]
        assert rows == [list(range(k * len(part), (k + 1) * len(part))) for k in range(minibatches)]


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of every kind under dotted keys."""
    kinds = {
        "seed": st.integers(0, 2**40),
        "model.chat_template": st.none() | words,
        "data.prompts": words.filter(bool),
        "data.skip_bad_rows": st.floats(0, 1),
        "lora.alpha": st.floats(0.001, 1e6),
        "lora.target_modules": st.just("all-linear") | st.lists(words, min_size=1, max_size=3),
        "ppo.kl_coef": st.floats(0, 10),
        "ppo.accept_weak_reward": st.booleans(),
        "sample.temperature": st.floats(0.01, 3),
        "chat.temperature": st.none() | st.floats(0.01, 3),
    }
    names = draw(st.lists(st.sampled_from(sorted(kinds)), unique=True))
    return {name: draw(kinds[name]) for name in names}


class TestConfigs:
    @settings(few, max_examples=25)
    @given(changes())
    @example({"data.prompts": "\x85", "model.chat_template": "a\u2028b"})  # line breaks to YAML
    def test_overrides_are_what_the_file_would_say_and_a_dump_reads_back(self, drawn) -> None:
        base = "name: a\nmodel: {source: x}\n"
        overridden = parse_config(base, "f", [f"{key}={json.dumps(value)}" for key, value in drawn.items()])
        whole: dict[str, Any] = {"name": "a", "model": {"source": "x"}}
        for key, value in drawn.items():
            section, _, name = key.rpartition(".")
            (whole.setdefault(section, {}) if section else whole)[name] = value
        assert overridden == Config.model_validate(whole)
        assert parse_config(json.dumps(whole), "f") == overridden  # JSON is YAML
        for changed_only in (False, True):
            assert parse_config(dump_config(overridden, changed_only), "f") == overridden

    @few
    @given(st.text(max_size=80) | values.map(json.dumps))
    def test_any_text_is_a_config_or_refused(self, text) -> None:
        found = outcome(parse_config, text, "f")
        assert isinstance(found, Config) or str(found).startswith("f:")

    @few
    @given(st.integers(0, 5), st.integers(0, 5))
    def test_a_mistake_is_placed_where_it_stands(self, above, spaces) -> None:
        text = "#\n" * above + "name: a\nmodel:\n" + " " * (spaces + 1) + "sorce: x\n"
        found = outcome(parse_config, text, "f")
        assert f"f:{above + 3}:{spaces + 2}: model.sorce: unknown key" in str(found)


class TestRows:
    @few
    @given(st.lists(st.dictionaries(words, values, max_size=4), min_size=2, max_size=5), st.data())
    def test_rows_come_back_with_their_lines(self, written, data) -> None:
        """Two or more: an object alone may be a table of columns, such as `{"prompt": ["a", "b"]}`."""
        blank = [data.draw(st.integers(0, 2)) for _ in written]
        content = "".join("\n" * gap + json.dumps(row) + "\n" for gap, row in zip(blank, written, strict=True))
        found = json_rows(content.encode(), "f")
        lines = [sum(blank[: k + 1]) + k + 1 for k in range(len(written))]
        assert [(row.number, row.fields) for row in found if isinstance(row, Row)] == list(
            zip(lines, written, strict=True)
        )
        assert [row.where for row in found if isinstance(row, Row)] == [f"f:{line}" for line in lines]

    @few
    @given(
        st.lists(
            values
            | st.fixed_dictionaries(
                {"prompt": values}, optional={"response": values, "chosen": values, "rejected": values}
            ),
            min_size=2,  # one object alone may be a table of columns
            max_size=4,
        )
    )
    def test_any_json_is_read_or_every_bad_row_is_named(self, tmp_path: Path, written) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
        loaded = outcome(load, path, "data.format")
        if isinstance(loaded, Loaded):
            assert len(loaded.located) + len(loaded.problems) == loaded.rows == len(written)
        else:
            assert str(path) in str(loaded)
