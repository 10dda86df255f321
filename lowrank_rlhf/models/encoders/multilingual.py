"""Sentence embeddings by Universal Sentence Encoder Multilingual v3 (Yang et al. 2020, arXiv 1907.04307), in numpy.

It knows 16 languages, Chinese among them. A deep averaging network: embeddings of the tokens, three convolutions over
2, 3 and 5 of them, their mean, and a small residual network. Imports no torch.
"""

import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.encoder import MULTILINGUAL, fetch_encoder

MAX_TOKENS = 128
UNKNOWN, BEGIN, END = 0, 1, 2
WINDOWS = ((2, 0), (3, 1), (5, 2))
"""Width of each convolution, and how many of its tokens are left of the output's."""
_WIDTH = 256
_EPSILON = 1e-12

Array = NDArray[Any]


def embed_sentences(texts: Sequence[str]) -> Array:
    """Return the embeddings of N texts: (N, 512), of unit length, so that products are cosine similarities.

    Texts are cut after 128 tokens. Raises `UserError` if the encoder cannot be downloaded.
    """
    tokenizer, weights = _encoder()
    encoded = [[BEGIN, *encoding.ids, END] for encoding in tokenizer.encode_batch(list(texts))]
    return np.array([_embed(ids, weights) for ids in encoded], dtype=np.float32).reshape(len(encoded), -1)


@cache
def _encoder() -> tuple[Tokenizer, dict[str, Array]]:
    folder = fetch_encoder(MULTILINGUAL, Progress.silent())  # the pipeline has fetched it already, and shown it
    return read_tokenizer(folder / "sp.model"), _read_arrays(folder / "weights.npz")


def _read_arrays(path: Path) -> dict[str, Array]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                found[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a SentencePiece unigram model (`sentencepiece_model.proto`)."""
    pieces, characters = [], b""
    for field, value in _fields(path.read_bytes()):
        if field == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0))
        elif field == 3:
            characters = dict(_fields(value))[2]
    tokenizer = Tokenizer(models.Unigram(pieces, UNKNOWN))
    spaces = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(characters), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protocol buffer: an integer for a varint, else bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or _varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def _embed(ids: list[int], weights: dict[str, Array]) -> Array:
    """Return the embedding (512,) of a text's T tokens."""
    tokens = np.stack([_token(token, weights) for token in ids])  # (T, 512)
    projected = [tokens @ weights[f"proj{width}"] + weights[f"proj_b{width}"] for width, _ in WINDOWS]
    scale, shift = ([weights[f"{name}{width}"] for width, _ in WINDOWS] for name in ("ln_g", "ln_b"))
    # One layer norm over the inputs of all three convolutions.
    states = _layer_norm(np.hstack(projected), np.hstack(scale), np.hstack(shift))  # (T, 768)
    features = [tokens]
    for place, (width, left) in enumerate(WINDOWS):
        hidden = states[:, place * _WIDTH : (place + 1) * _WIDTH]  # (T, 256)
        for layer in ("1", "2"):
            around = _windows(hidden, width, left)  # (T, width * 256)
            hidden = hidden + np.maximum(around @ weights[f"w{layer}_{width}"] + weights[f"b{layer}_{width}"], 0)
        features.append(hidden)
    combined = _layer_norm(np.hstack(features), weights["ln_g"], weights["ln_b"])  # (T, 1280)
    mean = (combined.sum(0) @ weights["cnn_W"] + len(ids) * weights["cnn_b"]) / len(ids) ** 0.5  # (512,)
    first = np.maximum(mean @ weights["p1"] + np.maximum(mean @ weights["d0"], 0) @ weights["d1"], 0)  # (320,)
    second = np.tanh(first @ weights["p3"] + np.maximum(first @ weights["d2"], 0) @ weights["d3"])  # (512,)
    return second / np.linalg.norm(second)


def _token(token: int, weights: dict[str, Array]) -> Array:
    """Return a token's embedding (512,): row `token // 17` of table `token % 17`, kept in small integers."""
    row, table = divmod(token, len(weights["scale"]))
    return weights[f"q{table + 1}"][row] * weights["scale"][table] + weights["lo"][table]


def _windows(states: Array, width: int, left: int) -> Array:
    """Return each token's neighbourhood, side by side: (T, width * 256) of (T, 256); zeros beyond the text."""
    padded = np.pad(states, ((left, width - 1 - left), (0, 0)))
    return np.hstack([padded[shift : shift + len(states)] for shift in range(width)])


def _layer_norm(states: Array, scale: Array, shift: Array) -> Array:
    centred = states - states.mean(-1, keepdims=True)
    normal: Array = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + _EPSILON)
    return normal * scale + shift
