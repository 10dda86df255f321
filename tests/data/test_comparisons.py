"""Comparisons from PandaLM's file and from prompt-chosen-rejected rows."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.errors import UserError

PANDALM = Path(__file__).parents[3] / "shared/data/pandalm_testset_v1.json"
NAME_THEM = "Name the columns, such as rank.columns.prompt=COLUMN. Formats (docs/data-formats.md): "
PANDA_KEYS = '"instruction", "response1", "response2", "annotator1", "annotator2", "annotator3"'


def panda(instruction: str, first: object, second: object, votes: tuple[object, ...], given: str = "") -> dict:
    answers = {"instruction": instruction, "input": given, "response1": first, "response2": second}
    return answers | {f"annotator{number}": vote for number, vote in enumerate(votes, 1)}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_small_pandalm_file(tmp_path: Path) -> None:
    rows = [
        panda("Greet.", "Hi", "Ho", (1, 1, 2)) | {"idx": 0},
        panda("Greet.", "Ho", "Hey", (2, 0, 2)),
        panda("Greet.", "Hi", "Hey", (1, 2, 0)),
        panda("Greet.", "Hi", "Hey", (0, 0, 1)),
        panda("Greet.", True, "Hey", (2, 2, 2), given="Bob"),
        panda("Greet.", "Hi Bob", "", (1, 1, 1), given="Bob"),
        panda("Greet.", "Same", "Same", (1, 1, 1)),
        panda(" ", "Hi", "Ho", (2, 2, 2), given="Only input"),
    ]
    data = load_comparisons(write(tmp_path / "panda.json", rows))
    assert [(p.id, p.text) for p in data.prompts] == [
        ("p00001", "Greet."),
        ("p00006", "Greet.\n\nBob"),
        ("p00008", "Only input"),
    ]
    text = {answer.id: (answer.prompt_id, answer.text) for answer in data.answers}
    assert [(r.prompt_id, *(text[a] for (a,) in r.tiers), r.annotator) for r in data.rankings] == [
        ("p00001", ("p00001", "Hi"), ("p00001", "Ho"), "majority-of-3"),
        ("p00001", ("p00001", "Hey"), ("p00001", "Ho"), "majority-of-3"),
        ("p00006", ("p00006", "Hi Bob"), ("p00006", ""), "majority-of-3"),
        ("p00008", ("p00008", "Ho"), ("p00008", "Hi"), "majority-of-3"),
    ]
    assert data.rankings[0].tiers[1] == data.rankings[1].tiers[1], "one answer text, one id"
    assert len(data.answers) == 7
    assert data.notes == [
        f"Read 8 rows of panda.json in the pandalm format: all 8 rows have {PANDA_KEYS}.",
        "Ignored the keys idx.",
        "Dropped 2 rows in which neither answer had two of the three votes.",
        "Dropped 1 row in which an answer is true or false instead of text: 5.",
        "Dropped 1 row in which both answers are the same.",
        "Kept 1 row in which an answer is empty.",
        "Kept 4 comparisons of 7 answers to 3 prompts.",
    ]


def test_prompt_chosen_rejected(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Greet.", "chosen": "Hi", "rejected": "Ho"},
        {"prompt": " greet.\n", "chosen": "Ho", "rejected": "Hi"},
        {"prompt": "Leave.", "chosen": "Hi", "rejected": "Ho"},
    ]
    data = load_comparisons(write(tmp_path / "pairs.jsonl", "\n\n".join(map(json.dumps, rows))))
    assert [prompt.id for prompt in data.prompts] == ["p00001", "p00005"]
    assert [(r.prompt_id, r.tiers, r.annotator) for r in data.rankings] == [
        ("p00001", (("p00001-0",), ("p00001-1",)), "dataset"),
        ("p00001", (("p00001-1",), ("p00001-0",)), "dataset"),
        ("p00005", (("p00005-0",), ("p00005-1",)), "dataset"),
    ]
    assert data.notes == [
        'Read 3 rows of pairs.jsonl in the preference format: all 3 rows have "prompt", "chosen", "rejected".',
        "Kept 3 comparisons of 4 answers to 2 prompts.",
    ]


GOOD = '{"prompt": "Hi", "chosen": "a", "rejected": "b"}'
BAD_FILES = {
    "": ': no rows. Expected one object like {"prompt": "..."} per line',
    "[]": ': no rows. Expected one object like {"prompt": "..."} per line',
    '{"question": "Hi", "best": "a"}': (
        f":1: unknown format. Keys found: question, best. {NAME_THEM}question-preference (question, chosen, rejected)"
    ),
    "[{}]": (
        f": row 1: unknown format. Keys found: none. {NAME_THEM}preference (prompt, chosen, rejected); "
        "implicit-preference (chosen, rejected); hh-rlhf (chosen, rejected); ranked (prompt, responses)"
    ),
    f'{GOOD}\n{{"prompt": "Hi", "chosen": "a"}}': ":2: no rejected, which preference needs. Keys found: prompt, chosen",
    f"{GOOD}\n{{nonsense": (
        ':2: invalid JSON (Expecting property name enclosed in double quotes). Expected a line like {"prompt": "..."}'
    ),
    f"[\n{GOOD}\n{GOOD}]": ":3: invalid JSON (Expecting ',' delimiter). Correct this line",
    f"[{GOOD}, 7]": ': row 2: expected an object like {"prompt": "..."}, got a number',
    '{"prompt": "Hi", "chosen": ["a"], "rejected": "b"}': (
        ":1: chosen[0] must be an object with role and content, not a string"
    ),
    '{"prompt": "", "chosen": "a", "rejected": "b"}': ':1: "prompt" is empty. Fill it in or delete the row',
    json.dumps([panda("Hi", "a", "b", (1, 1, 1)), panda("Hi", "a", "b", (1, 3, 1))]): (
        ': row 2: "annotator2" is 3. Expected 1 for the first answer, 2 for the second, 0 for a tie'
    ),
    json.dumps([panda("Hi", "a", "b", (True, 1, 1))]): (
        ': row 1: "annotator1" is True. Expected 1 for the first answer, 2 for the second, 0 for a tie'
    ),
    json.dumps([panda("Hi", None, "b", (1, 1, 1))]): ': row 1: "response1" must be a string, not null',
    json.dumps([panda("", "a", "b", (1, 1, 1))]): (
        ': row 1: "instruction" with "input" is empty. Fill it in or delete the row'
    ),
    json.dumps([panda("Hi", "a", "b", (0, 0, 0))]): (
        f": no comparisons left. Read 1 row of my.json in the pandalm format: its only row has {PANDA_KEYS}. "
        "Dropped 1 row in which neither answer had two of the three votes. "
        "Kept 0 comparisons of 0 answers to 0 prompts."
    ),
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_bad_files_are_named_with_their_row(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "my.json", content)
    with pytest.raises(UserError) as caught:
        load_comparisons(path)
    assert str(caught.value) == f"{path}{BAD_FILES[content]}"


@pytest.mark.skipif(not PANDALM.exists(), reason=f"{PANDALM} is not on this machine")
def test_the_real_pandalm_file() -> None:
    data = load_comparisons(PANDALM)
    assert data.notes == [
        f"Read 999 rows of pandalm_testset_v1.json in the pandalm format: all 999 rows have {PANDA_KEYS}.",
        "Ignored the keys cmp_key, idx, motivation_app.",
        "Dropped 105 rows in which neither answer had two of the three votes.",
        "Dropped 6 rows in which an answer is true or false instead of text: 158, 159, 160, 162, 163, 165.",
        "Kept 52 rows in which an answer is empty.",
        "Kept 888 comparisons of 684 answers to 158 prompts.",
    ]
    assert len({prompt.text.strip().casefold() for prompt in data.prompts}) == len(data.prompts) == 158
    prompt_of = {answer.id: answer.prompt_id for answer in data.answers}
    for ranking in data.rankings:
        assert {prompt_of[answer] for tier in ranking.tiers for answer in tier} == {ranking.prompt_id}
    # Recounted here from the raw votes, winner by winner.
    raw = json.loads(PANDALM.read_text("utf-8"))
    winners = Counter(
        row[f"response{vote}"]
        for row in raw
        for vote in (1, 2)
        if [row[f"annotator{n}"] for n in (1, 2, 3)].count(vote) >= 2
        and not any(isinstance(row[f"response{n}"], bool) for n in (1, 2))
    )
    text = {answer.id: answer.text for answer in data.answers}
    assert Counter(text[ranking.tiers[0][0]] for ranking in data.rankings) == winners
