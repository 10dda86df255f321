"""Sentence embeddings by all-MiniLM-L6-v2, for `simulated-kind-annotator`; on the CPU, and without gradients."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertModel
from transformers.utils import logging

from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.encoder import MINILM, fetch_encoder

MAX_TOKENS = 128
_ROWS = 64


@cache
def _encoder() -> tuple[Tokenizer, Any]:
    folder = fetch_encoder(MINILM, Progress.silent())  # the pipeline has fetched it already, and shown it
    logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    model = BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return tokenizer, model.eval()


@torch.no_grad()
def embed_sentences(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the embeddings of N texts: (N, 384), of unit length, so that products are cosine similarities.

    The mean of the last hidden states over a text's tokens (Reimers and Gurevych 2019); texts are cut after 128
    tokens. A text's embedding does not depend on the texts around it, up to rounding. Raises `UserError` if the encoder
    cannot be downloaded.
    """
    tokenizer, model = _encoder()
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    found = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        width = len(encoded[rows[-1]])
        ids = torch.tensor([encoded[row] + [0] * (width - len(encoded[row])) for row in rows])  # (n, width)
        lengths = torch.tensor([len(encoded[row]) for row in rows])
        mask = (torch.arange(width) < lengths[:, None]).float()  # (n, width)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, width, 384)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (n, 384)
        found[rows] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return found
