"""Comparison of a loaded model with transformers' plain attention, whatever the architecture.

A few tokens are scored and decoded as the stages do: rows padded on either side, a cache whose rows are repeated and
selected. Their log-probabilities must equal those of one whole forward of the same weights with `eager` attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from lowrank_rlhf.errors import ModelNotFinite
from lowrank_rlhf.models.batch_limits import first_line, is_out_of_memory
from lowrank_rlhf.models.decoding import prefill
from lowrank_rlhf.models.layers.attention import NAME as SHORT_ATTENTION
from lowrank_rlhf.models.layers.attention import right_padding_mask
from lowrank_rlhf.models.layers.joint_weights import layers_by_input
from lowrank_rlhf.models.layers.partial_forward import lower_states, partial_forward
from lowrank_rlhf.models.loading.full_precision import fits_in_float32, in_float32
from lowrank_rlhf.models.loading.structure import unknown_structure, unlike_known
from lowrank_rlhf.models.logprobs import vocabulary_logits
from lowrank_rlhf.run.progress import Progress

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import Base

TOLERANCE = 0.02
"""Largest difference of a token's log-probability in float32, nats: kernels round differently."""
TOLERANCE_16_BITS = 0.5
"""The same in bfloat16 and float16, whose rounding alone gives some tenths at improbable tokens: less than many faults.
These are found in float32, wherever a copy of the weights that are not quantised is small enough."""
_TEXT = (
    "The café's “quick” fox ran 12.5 km before noon. Why would anybody ask it to be kind and short?\n\n"
    "Because every answer is read by people, and they rank it.\tif x == 1: return 2"
)
_LENGTH = 12
_PROMPTS = (8, 5)
"""Tokens of each of the two rows that are a prompt; the next ones are decoded."""


def choose_attention(base: "Base", progress: Progress) -> None:
    """Give the model the fastest attention that agrees with transformers' `eager`; print a note if ours differs.

    Raises `UserError` if none agrees or the model cannot be run, `ModelNotFinite` if the model itself gives NaN.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it warns of models whose attention cannot be exchanged
    try:
        with torch.no_grad():
            _choose(base, progress)
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        base.model.eval()


def _choose(base: "Base", progress: Progress) -> None:
    names = list(_attentions(base))
    if base.compute_dtype != torch.float32 and not base.by_unsloth and fits_in_float32(base.model, base.device):
        with in_float32(base.model):
            names = _agreeing(base, names, TOLERANCE, progress)
    _agreeing(base, names, TOLERANCE if base.compute_dtype == torch.float32 else TOLERANCE_16_BITS, progress)


def _agreeing(base: "Base", names: list[str], tolerance: float, progress: Progress) -> list[str]:
    """Set the first of these attentions that agrees with `eager`; return it and those after it."""
    rows, source, kind = probe_rows(base), base.config.source, type(base.model).__name__
    try:
        expected = _library_logprobs(base, rows)
    except Exception as error:  # whatever an architecture raises: anything but a sentence would be a traceback
        raise unknown_structure(base.model, source, "a forward of a few tokens", error) from None
    if not expected.isfinite().all():
        raise ModelNotFinite(
            f"model.source: {source}: {kind} gives NaN or infinite log-probabilities for ordinary text. Its weights "
            "are damaged or exceed this number format: fetch the model again, or set model.compute_dtype=float32"
        )
    failures: dict[str, list[str]] = {}  # names of attentions by what is wrong with them
    for number, name in enumerate(names):
        try:
            if name:
                base.model.get_decoder().set_attn_implementation(name)
            gap = _deviation(base, rows, expected)
        except Exception as error:
            if is_out_of_memory(error):
                raise unknown_structure(base.model, source, "a few decoding steps", error) from None
            failures.setdefault(f"{type(error).__name__}: {first_line(error)}", []).append(name)
            continue
        if gap <= tolerance:
            return names[number:]
        failures.setdefault(f"differs by {gap:.3g} nats" if gap < torch.inf else "gives NaN", []).append(name)
        if name == SHORT_ATTENTION:
            progress.say(
                f"NOTE: {kind}: the attention of this package differs from that of transformers by {gap:.3g} nats at a "
                "token and is not used"
            )
    found = "; ".join(f"{', '.join(those)}: {what}" for what, those in failures.items())
    what = f"log-probabilities of a few tokens, with padding and a cache, do not equal those of transformers ({found})"
    raise unlike_known(base.model, source, what, "Choose another model")


def _attentions(base: "Base") -> Iterator[str]:
    """Yield the attentions to try, fastest first; an empty name is the one that the model has."""
    decoder: Any = base.model.get_decoder()
    if base.by_unsloth or not hasattr(decoder, "set_attn_implementation"):
        yield ""
        return
    try:
        decoder.set_attn_implementation("sdpa")
    except (ValueError, ImportError):  # not supported, then ours is not either: it computes the same
        yield "eager"
        return
    if base.device.type == "cpu":
        yield SHORT_ATTENTION
    yield from ("sdpa", "eager")


def probe_rows(base: "Base") -> list[list[int]]:
    """Return two rows of ordinary tokens."""
    embeddings: Any = base.model.get_input_embeddings()
    entries = embeddings.weight.shape[0]
    tokens = list(range(2 * _LENGTH))
    with suppress(Exception):  # a tokenizer without a token for unknown text raises exceptions of its own
        tokens = [*base.tokenizer(_TEXT, add_special_tokens=False)["input_ids"], *tokens]
    return [[token % entries for token in tokens[start : start + _LENGTH]] for start in (0, _LENGTH)]


def _library_logprobs(base: "Base", rows: list[list[int]]) -> Tensor:
    """Return the log-probability of each token after the first, (2, T - 1), by the model's own whole forward.

    In training mode, in which TRL calls it: some models require other arguments there.
    """
    model = base.model
    if not base.by_unsloth and hasattr(model.get_decoder(), "set_attn_implementation"):
        model.get_decoder().set_attn_implementation("eager")
    ids = torch.tensor(rows, device=base.device)
    model.train(not base.by_unsloth)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    model.eval()
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def _deviation(base: "Base", rows: list[list[int]], expected: Tensor) -> float:
    """Return the largest difference of a log-probability from the expected ones, nats; infinite for NaN."""
    found = [*_scored(base, rows), *(() if base.by_unsloth else _decoded(base, rows))]
    gaps = torch.stack([logprob - expected[row, index - 1] for (row, index), logprob in found]).abs()
    return float(gaps.nan_to_num(torch.inf).max())


_Found = Iterator[tuple[tuple[int, int], Tensor]]
"""Row and index of a token, and its log-probability."""


def _scored(base: "Base", rows: list[list[int]]) -> _Found:
    """Yield the log-probabilities of two rows of unequal length, padded on the right, as in `Roles.logprobs`."""
    lengths = (_LENGTH, _PROMPTS[1])
    ids = torch.full((2, _LENGTH), base.pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor(rows[row][:length])
    mask = torch.arange(_LENGTH) < torch.tensor(lengths)[:, None]
    ids, decoder = ids.to(base.device), base.model.get_decoder()
    needed = None if base.by_unsloth else right_padding_mask(decoder, mask.to(base.device))
    states = decoder(input_ids=ids, attention_mask=needed, use_cache=False).last_hidden_state
    for row, length in enumerate(lengths):
        places = [(row, index) for index in range(1, length)]
        yield from _read(base, states[row, : length - 1], places, rows)


def _decoded(base: "Base", rows: list[list[int]]) -> _Found:
    """Yield log-probabilities of decoding steps: prompts padded on the left, each twice, then two rows reversed."""
    poll = (lambda: None) if base.config.cuda_graphs else None
    prompts = [row[:length] for row, length in zip(rows, _PROMPTS, strict=True)]
    states, steps = prefill(base.model, prompts, base.pad, 2, 2, poll)  # (4, h)
    places = [(row, length) for row, length in enumerate(_PROMPTS) for _ in range(2)]
    for t in range(3):
        yield from _read(base, states, places, rows)
        if t == 2:
            return
        tokens = torch.tensor([rows[row][index] for row, index in places], device=base.device)
        if t == 1:
            kept = torch.tensor([3, 0], device=base.device)
            steps.keep(kept)
            places, tokens = [places[3], places[0]], tokens[kept]
        states = steps(tokens)
        places = [(row, index + 1) for row, index in places]


def _read(base: "Base", states: Tensor, places: Sequence[tuple[int, int]], rows: list[list[int]]) -> _Found:
    """Yield the log-probability of the token at each place, predicted from the states, (N, h)."""
    logprobs = vocabulary_logits(states, base.model).log_softmax(-1)
    for (row, index), logprob in zip(places, logprobs, strict=True):
        yield (row, index), logprob[rows[row][index]]


def find_siblings(base: "Base") -> list[list[nn.Module]]:
    """Return the decoder's linear layers, those that read the same input together: see `layers_by_input`."""
    if base.by_unsloth:
        return []
    decoder, ids = base.model.get_decoder(), torch.tensor(probe_rows(base)[:1], device=base.device)
    return layers_by_input(decoder, lambda: decoder(input_ids=ids, use_cache=False))


def check_partial_forward(base: "Base", start: int, stop: int) -> None:
    """Compare a forward that begins at layer `start` with a whole one, and try one that ends before layer `stop`.

    Raises `UserError` if they differ: some architectures pass more from layer to layer than the hidden states.
    """
    decoder, ids = base.model.get_decoder(), torch.tensor(probe_rows(base)[:1], device=base.device)
    mask, depth, exact = torch.ones_like(ids), len(decoder.layers), fits_in_float32(base.model, base.device)
    try:
        with torch.no_grad(), in_float32(base.model) if exact else nullcontext():
            whole = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            lower = lower_states(decoder, start, ids, mask) if start else None
            for end in sorted({stop, depth}):
                with partial_forward(decoder, start, lower, end):
                    found = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    except Exception as error:
        raise unknown_structure(base.model, base.config.source, "a forward of some of its layers", error) from None
    gap = float((found - whole).abs().max() / whole.abs().max())
    if not gap <= (1e-3 if exact else 0.1):
        what = f"its upper layers alone give other states, by {gap:.2g} of the largest"
        raise unlike_known(base.model, base.config.source, what, "Set lora.last_layers and reward.layers to null")
