"""Sample answers by temperature alone: K answers from one prefill, finished rows dropped."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import ModelNotFinite
from lowrank_rlhf.models.batch_limits import is_out_of_memory
from lowrank_rlhf.models.decoding import left_padded, prefill
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.logprobs import vocabulary_logits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.unsloth import generate, sampling


@dataclass(frozen=True)
class Response:
    """Sampled token ids; the last is the end-of-turn token if the response is finished."""

    tokens: tuple[int, ...]
    finished: bool


@contextmanager
def generating_as(roles: Roles, role: Role) -> Iterator[None]:
    """Generate as that role inside the block: on merged weights if the config says so, else through the adapter."""
    if roles.base.by_unsloth:
        with roles.acting_as(role), sampling(roles.peft):
            yield
    elif roles.base.config.merged_rollouts:
        with merged(roles, role), torch.no_grad():
            yield
    else:
        with roles.acting_as(role):
            yield


def sample_answers(
    roles: Roles,
    role: Role,
    prompts: Sequence[Sequence[int]],
    sampling: SampleConfig,
    seed: int,
    *,
    answers_per_prompt: int = 1,
    done: Sequence[list[Response]] = (),
    on_batch: Callable[..., None] | None = None,
) -> list[list[Response]]:
    """Return `answers_per_prompt` responses to each prompt (K; not `sampling.answers_per_prompt`), in their order.

    Every response has its own random stream, from `seed` and its index: neither the batch size nor the other prompts
    change it beyond rounding. `on_batch(responses, tokens_per_second=...)` gets the responses of each batch (with
    several processes, of the batches decoded at once). `done` is what it got in an earlier call with the same
    arguments; sampling continues with the prompts after those.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # similar lengths: little padding
    limits, world_size, start = roles.base.limits, roles.group.world_size, len(done)
    generator = torch.Generator().manual_seed(seed)
    # (prompts, K, L), all drawn before any batch is cut: a batch that is halved or resumed draws the same tokens
    uniforms = torch.rand(len(prompts), answers_per_prompt, sampling.max_new_tokens, generator=generator)
    answers: list[list[Response]] = [[] for _ in prompts]
    for index, group in zip(order, done, strict=False):
        answers[index] = group
    with generating_as(roles, role):
        while start < len(order):
            most = min(sampling.batch_size, limits.rows or sampling.batch_size)
            chosen = order[start : start + max(1, most // answers_per_prompt) * world_size]
            started, reason = time.monotonic(), ""
            try:
                responses = _decode_sharded(roles, [prompts[i] for i in chosen], uniforms[chosen], sampling.temperature)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = limits.report(error)
            if reason:  # outside of `except`: the traceback keeps the tensors alive
                roles.slots.forget()
                limits.halve_rows(-(-len(chosen) // world_size), reason, answers_per_prompt)
                continue
            start += len(chosen)
            groups = [responses[at : at + answers_per_prompt] for at in range(0, len(responses), answers_per_prompt)]
            for index, group in zip(chosen, groups, strict=True):
                answers[index] = group
            if on_batch:
                tokens = sum(len(response.tokens) for response in responses)
                on_batch(groups, tokens_per_second=tokens / (time.monotonic() - started))
    return answers


def stream_answer(
    roles: Roles, prompt: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, top_p: float = 1.0
) -> Iterator[int]:
    """Yield the tokens of one response as they are drawn; call it inside a `generating_as` block.

    They equal those of `sample_answers` for this prompt alone with the same seed. Temperature 0 is greedy. With `top_p`
    below 1 they are drawn from the `nucleus`; rollouts and evaluations never are.
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(1, 1, max_new_tokens, generator=generator)
    for _, drawn in _token_steps(roles, [prompt], uniforms, temperature, top_p):
        yield int(drawn[0])


def stream_text(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yield the text that each token adds, withholding an incomplete character until its other bytes arrive.

    `decode` is called with all tokens so far: a token's text may depend on the tokens before it.
    """
    received: list[int] = []
    whole = yielded = ""
    for token in tokens:
        received.append(token)
        whole = decode(received)
        if whole.startswith(yielded) and not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            yield whole[len(yielded) :]
            yielded = whole
    yield whole[len(yielded) :]


def text_pieces(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return the text that each token adds; a character of several tokens belongs to the first of them.

    The pieces join to `decode(tokens)` if no token changes the text of earlier ones. `decode` is called with a few
    tokens at a time, always after those of the piece before: a token's text may depend on it.
    """
    pieces, before, first, rest = [""] * len(tokens), 0, 0, ""
    for end in range(1, len(tokens) + 1):
        known, whole = decode(list(tokens[before:first])), decode(list(tokens[before:end]))
        unfinished = whole.endswith("\N{REPLACEMENT CHARACTER}")
        revised = unfinished and not whole.startswith(known)
        rest = "\N{REPLACEMENT CHARACTER}" if revised else whole[_common(known, whole) :]
        if not unfinished:
            pieces[first], before, first = rest, first, end
    if first < len(tokens):
        pieces[first] = rest
    return pieces


def _common(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    return sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(one, other, strict=False)))


def _decode_sharded(roles: Roles, prompts: list[Sequence[int]], uniforms: Tensor, temperature: float) -> list[Response]:
    """Divide P prompts with (P, K, L) uniforms among all processes; return P x K responses, prompt by prompt."""
    tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=roles.base.device)  # (P, K, L)
    if own := roles.group.shard(range(len(prompts))):
        decode = _by_unsloth if roles.base.by_unsloth else _decode
        tokens[own] = decode(roles, [prompts[i] for i in own], uniforms[own], temperature)
    roles.group.all_reduce([tokens])  # each prompt is non-zero in one process: the sum is exact
    return [_response(row, roles.base.eos) for row in tokens.flatten(0, 1).tolist()]


def _decode(roles: Roles, prompts: list[Sequence[int]], uniforms: Tensor, temperature: float) -> Tensor:
    """Decode P prompts with (P, K, L) uniforms; return the response tokens, (P, K, L), padded after their end."""
    tokens = torch.full(uniforms.flatten(0, 1).shape, roles.base.pad, device=roles.base.device)
    for t, (rows, drawn) in enumerate(_token_steps(roles, prompts, uniforms, temperature)):
        tokens[rows, t] = drawn  # padding where a finished row is still in the cache
    return tokens.view(uniforms.shape)


def _by_unsloth(roles: Roles, prompts: list[Sequence[int]], uniforms: Tensor, temperature: float) -> Tensor:
    """Decode as `_decode` does, through unsloth's decoder; a prompt is repeated for each of its responses."""
    base, (_, repeats, longest) = roles.base, uniforms.shape
    ids, attention = left_padded([prompt for prompt in prompts for _ in range(repeats)], base.pad)
    streams = uniforms.flatten(0, 1).to(base.device)

    def pick(logits: Tensor, step: int) -> Tensor:
        roles.poll()
        drawn = _next_tokens(logits[:, : base.vocabulary], temperature, streams[:, step])
        _check_drawn(int((drawn < 0).sum()), len(drawn))
        return drawn

    tokens = generate(
        roles.peft,
        ids.to(base.device),
        attention.to(base.device),
        pick,
        longest=longest,
        eos=base.eos,
        pad=base.pad,
    )
    return pad(tokens, (0, longest - tokens.shape[1]), value=base.pad).view(uniforms.shape)


def _next_tokens(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Return the next token of each row of logits, (R, V), or -1 for a row with a NaN or an infinity: (R,)."""
    if temperature:
        return draw(logits / temperature, uniforms)
    tokens = logits.argmax(-1)  # of a NaN if there is one
    return torch.where(logits.gather(-1, tokens[:, None]).squeeze(-1).isfinite(), tokens, -1)


def _token_steps(
    roles: Roles, prompts: list[Sequence[int]], uniforms: Tensor, temperature: float, top_p: float = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each step the indices, among P x K, and tokens of the responses in the cache: (R,), (R,).

    The token of a finished response is padding. Each step waits for the device once.
    """
    base, (_, repeats, length) = roles.base, uniforms.shape
    poll = roles.poll if base.config.cuda_graphs else None
    # length - 1: the first token follows from the prompt's last state, and the last token needs no forward
    states, steps = prefill(base.model, prompts, base.pad, repeats, length - 1, poll)  # (P x K, h)
    streams = uniforms.flatten(0, 1).to(base.device)  # (P, K, L) -> (P x K, L)
    rows = torch.arange(len(streams), device=base.device)  # (R,): responses with a row in the cache
    unfinished = torch.ones_like(rows, dtype=torch.bool)  # (R,)
    for t in range(length):
        logits = vocabulary_logits(states, base.model)[:, : base.vocabulary]  # (R, h) -> (R, V): ids that have a text
        if top_p < 1 and temperature:
            logits = nucleus(logits, temperature, top_p)
        drawn = _next_tokens(logits, temperature, streams[rows, t])  # (R,); finished rows draw too, and are discarded
        going = unfinished & (drawn != base.eos)
        counts = torch.stack([going.sum(), (unfinished & (drawn < 0)).sum(), unfinished.sum()])
        left, broken, all_rows = counts.tolist()
        _check_drawn(broken, all_rows)
        yield rows, drawn.where(unfinished, base.pad)  # before the next line: the end token is part of the response
        unfinished = going
        if t + 1 == length or not left:
            break
        if left <= steps.drop_below * len(rows):
            kept = unfinished.nonzero_static(size=left).squeeze(-1)  # (left,)
            steps.keep(kept)  # copies the cache, so only when enough rows have finished
            rows, unfinished, drawn = (x[kept] for x in (rows, unfinished, drawn))  # R = left from here on
        states = steps(drawn.clamp(min=0))  # (R,) -> (R, h); a finished row may be without a token


def _check_drawn(broken: int, rows: int) -> None:
    """Raise `ModelNotFinite` if some rows have no token."""
    if broken:
        raise ModelNotFinite(
            f"sampling: logits of {broken} of {rows} answers are NaN or infinite, so no token can be drawn. Set "
            "model.compute_dtype=float32, check the weights of the model and of its adapters, or raise "
            "sample.temperature if it is far below 1"
        )


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Set logits to -inf outside the nucleus of softmax(logits / temperature): (B, V) -> (B, V).

    The nucleus is the fewest most probable tokens with a probability of at least `top_p` together (Holtzman et al.
    2020, arXiv 1904.09751), at least one.
    """
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    outside = probabilities.cumsum(-1) - probabilities >= top_p  # (B, V): the tokens before this one are enough
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def _response(row: list[int], eos: int) -> Response:
    """Cut a row of sampled tokens after its first end-of-turn token."""
    if eos in row:
        return Response(tuple(row[: row.index(eos) + 1]), finished=True)
    return Response(tuple(row), finished=False)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row from softmax(logits) by inverse transform sampling: (B, V), (B,) -> (B,).

    A row with a NaN, an infinity or -inf alone has the token -1: its probabilities and their sum are NaN.
    It needs one uniform number per row, so a random stream per response is cheap; `torch.multinomial` draws V of them.
    """
    cumulative = logits.softmax(-1).cumsum(-1)  # (B, V)
    threshold = uniforms[:, None] * cumulative[:, -1:]  # (B, 1): by rounding the last sum is not exactly 1
    # right: a uniform of 0 draws no token of probability 0; clamp: a uniform near 1 none beyond the vocabulary
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return torch.where(cumulative[:, -1].isfinite(), drawn, -1)
