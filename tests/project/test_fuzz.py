"""The fuzz target on a few inputs, and what it does when a reader breaks; `make fuzz` goes on for minutes."""

from pathlib import Path

import fuzz
import pytest

from lowrank_rlhf.errors import UserError


def test_damaged_inputs_are_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert fuzz.fuzz(seconds=60, seed=2026, folder=tmp_path, most=1500) == 0
    assert capsys.readouterr().out == "1,500 inputs, seed 2026: each was read, or refused with a message\n"
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_inputs() -> None:
    def first(seed: int) -> list[tuple[str, bytes, fuzz.Reader]]:
        return [entry for entry, _ in zip(fuzz.inputs(seed), range(50), strict=False)]

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_the_good_inputs_are_good(tmp_path: Path) -> None:
    """Else damage to them would be refused before it is met. A preset's data need not be here."""
    for number, (suffix, content, readers) in enumerate(fuzz.seeds()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content.replace(b"source: dataset", b"source: judge").replace(b"  dataset:", b"  # dataset:"))
        for reader in readers:
            reader(path)


class TestBroken:
    @staticmethod
    def fails(path: Path) -> None:
        raise KeyError(path.suffix)

    @staticmethod
    def says_too_much(_: Path) -> None:
        raise UserError("x" * (fuzz.LONGEST_MESSAGE + 1))

    @pytest.mark.parametrize(
        ("reader", "says"), [(fails, "KeyError: '.csv'"), (says_too_much, "has 20,001 characters")]
    )
    def test_what_breaks_a_reader_is_printed_and_kept(self, tmp_path, monkeypatch, capsys, reader, says) -> None:
        monkeypatch.setattr(fuzz, "seeds", lambda: [(".csv", b"prompt\nHi\n", (reader,))])
        assert fuzz.fuzz(seconds=60, seed=1, folder=tmp_path) == 1
        out = capsys.readouterr().out
        assert says in out
        (kept,) = tmp_path.iterdir()
        assert kept.name == "broke-1-1.csv"
        assert str(kept) in out

    def test_a_reader_that_hangs_for_long_is_broken_too(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(fuzz, "SLOW_SECONDS", -1.0)
        assert fuzz.complaint(lambda _: None, tmp_path / "x") == "took 0 s"
