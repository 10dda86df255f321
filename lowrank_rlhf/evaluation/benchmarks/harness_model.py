"""A run's acting model as a model of lm-evaluation-harness. Importing this module needs the package `lm-eval`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lm_eval.api.model import TemplateLM

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.kept_values import KeptValues, digest_of
from lowrank_rlhf.maths.sequences import Sequences, micro_batches, pack
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.logprobs import vocabulary_logits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.chat_template import render
from lowrank_rlhf.sources.tokenizer import control_tokens

BATCH = 32
"""Requests computed, and kept, at once."""


class HarnessModel(TemplateLM):
    """The role POLICY, with whatever adapter is loaded into it.

    Requests are computed in batches of similar length; a batch that is in `kept` is not computed again. `key` stands
    for everything in its digest but the tokens.
    """

    def __init__(self, roles: Roles, name: str, key: str, kept: KeptValues, progress: Progress) -> None:
        super().__init__()
        self._roles, self._name, self._key, self._kept, self._progress = roles, name, key, kept, progress
        self._tokenizer = roles.base.tokenizer
        self._max_length = roles.base.config.max_length

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a turn."""
        return self._roles.base.eos

    @property
    def tokenizer_name(self) -> str:
        """Name in the harness's own caches."""
        return str(self._roles.base.config.source)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text, which has all its special tokens."""
        return list(self._tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's template, part of the key of the harness's caches."""
        return self._tokenizer.get_chat_template() if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the run's own prompts are rendered; without a prompt it ends inside the answer."""
        messages = control_tokens(self._tokenizer).escaped(chat_history)
        if add_generation_prompt:
            return render(self._tokenizer, messages)
        begun = messages[-1]["content"]
        kept = begun.strip()  # templates trim
        if not kept:
            return render(self._tokenizer, messages[:-1]) + begun
        before, found, _ = render(self._tokenizer, messages, answered=True).rpartition(kept)
        if not found:
            raise UserError("--benchmark: the chat template changes the beginning of an answer that the task gives")
        return before + found + begun[len(begun.rstrip()) :]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Raise `UserError`: the perplexity of whole texts is not measured here."""
        raise UserError(
            f"{requests[0].task_name}: a task of perplexity (loglikelihood_rolling), which is not supported"
        )

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return log-probability of each continuation, and whether every token of it is the most likely one."""
        if max(len(answer) for _, _, answer in requests) >= self._max_length:
            raise UserError(f"an answer of the task exceeds model.max_length={self._max_length}; add a larger one")
        self._report_cut([len(context) + len(answer) for _, context, answer in requests])
        cut = [(context[-(self._max_length - len(answer)) :], answer) for _, context, answer in requests]
        found = self._batched("likelihood", cut, self._likelihoods)
        return [(likelihood, greedy) for likelihood, greedy in found]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return the answers, each cut before the first of its stop strings."""
        texts: list[str] = [""] * len(requests)
        settings = [dict(request.args[1]) for request in requests]
        for tokens, temperature in sorted({_sampling(each) for each in settings}):
            if tokens >= self._max_length - 1:
                raise UserError(
                    f"{requests[0].task_name}: generates {tokens} tokens, model.max_length is {self._max_length}; "
                    f"add model.max_length={2 * tokens} to the command"
                )
            chosen = [index for index, each in enumerate(settings) if _sampling(each) == (tokens, temperature)]
            longest = self._max_length - tokens
            encoded = [self.tok_encode(requests[index].args[0]) for index in chosen]
            self._report_cut([len(prompt) + tokens for prompt in encoded])
            prompts = [(prompt[-longest:], [tokens]) for prompt in encoded]
            settled = SampleConfig(max_new_tokens=tokens, batch_size=BATCH)
            sampling = settled.model_copy(update={"temperature": temperature})  # 0 is greedy
            compute = partial(self._answers, sampling=sampling)
            answers = self._batched(f"temperature {temperature}", prompts, compute)
            for index, answer in zip(chosen, answers, strict=True):
                texts[index] = _cut(answer, settings[index].get("until") or ())
        return texts

    def _report_cut(self, lengths: Sequence[int]) -> None:
        """Report how many requests of these lengths lose the beginning of their context."""
        if count := sum(length > self._max_length for length in lengths):
            self._progress.say(
                f"  {self._name}: {count} of {len(lengths)} requests exceed model.max_length={self._max_length} and "
                f"lose their beginning; add model.max_length={max(lengths)} to the command"
            )

    def _batched(
        self, kind: str, rows: Sequence[tuple[list[int], list[int]]], compute: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        """Return a value for each row, in order, from batches of similar length."""
        order = sorted(range(len(rows)), key=lambda index: (-len(rows[index][0]) - len(rows[index][1]), index))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        digests = [digest_of(self._key, kind, [rows[index] for index in batch]) for batch in batches]
        missing = [at for at, digest in enumerate(digests) if self._kept.get(digest) is None]
        done = len(rows) - sum(len(batches[at]) for at in missing)
        with self._progress.track(self._name, len(rows), "requests", done) as bar:
            for at in missing:
                self._kept.add(digests[at], compute([rows[index] for index in batches[at]]))
                bar.advance(len(batches[at]))
        values: list[Any] = [None] * len(rows)
        for batch, digest in zip(batches, digests, strict=True):
            for index, value in zip(batch, self._kept.get(digest), strict=True):
                values[index] = value
        return values

    def _likelihoods(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        base = self._roles.base
        batch = pack([context for context, _ in rows], [answer for _, answer in rows], base.pad, base.device)
        return base.limits.retry(lambda: self._read(batch), max(batch.lengths()))

    def _read(self, batch: Sequences) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(batch)
        with self._roles.acting_as(Role.POLICY):
            for index in micro_batches(batch.lengths(), self._roles.base.limits.tokens):
                part = batch.rows(index)
                hidden = self._roles.hidden(part)  # (b, t, h)
                for row, place in enumerate(index):
                    (positions,) = part.response[row].nonzero(as_tuple=True)  # (n,)
                    logits = vocabulary_logits(hidden[row, positions - 1], self._roles.base.model)
                    logits = logits[:, : self._roles.base.vocabulary]  # (n, V)
                    targets = part.ids[row, positions]
                    logprobs = logits.log_softmax(-1).gather(-1, targets[:, None])  # (n, 1)
                    found[place] = (float(logprobs.sum()), bool((logits.argmax(-1) == targets).all()))
        return found

    def _answers(self, rows: list[tuple[list[int], list[int]]], sampling: SampleConfig) -> list[str]:
        groups = sample_answers(self._roles, Role.POLICY, [prompt for prompt, _ in rows], sampling, 0)
        return [self._roles.base.decode(group[0].tokens) for group in groups]


def _sampling(settings: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of new tokens and the temperature of a task's settings; 256 tokens is the harness's default."""
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    return int(settings.get("max_gen_toks", settings.get("max_new_tokens", 256))), temperature


def _cut(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text
