"""llama.cpp's own reading of a GGUF file: its chat template, its tokens, its greedy answers with log-probabilities.

`xllamacpp` runs llama.cpp's server in this process, which answers on a port of this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lowrank_rlhf.errors import StageFailed

_SECONDS = 600.0  # for one answer, on a slow and busy machine


@dataclass(frozen=True)
class GreedyAnswer:
    """Most probable tokens one after the other, an end of turn included, with their log-probabilities in nats."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class LlamaFiles:
    """Files that llama.cpp reads."""

    model: Path
    lora: Path | None = None
    template: str | None = None
    """Chat template that replaces the file's own."""


class LlamaServer:
    """A GGUF file loaded by llama.cpp, with an adapter if one is given."""

    def __init__(self, files: LlamaFiles, context: int, threads: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(files.model), context, 1, False
        params.cpuparams.n_threads, params.use_jinja, params.verbosity = threads, True, -1
        if files.template:
            params.chat_template = files.template
        if files.lora:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(files.lora), 1.0
            params.lora_adapters = [adapter]
        self._server = xllamacpp.Server(params)
        self._client = httpx.Client(base_url=self._server.listening_address, timeout=_SECONDS, trust_env=False)

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a conversation up to where the answer begins, by the file's own template."""
        prompt = self._post("/apply-template", {"messages": list(messages)})["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", asked)["tokens"]]

    def greedy(self, prompt: Sequence[int], tokens: int) -> GreedyAnswer:
        """Return the greedy answer of at most so many tokens."""
        settings = {"temperature": 0, "repeat_penalty": 1.0, "n_probs": 1, "cache_prompt": False}
        asked = {"prompt": list(prompt), "n_predict": tokens, **settings}
        found = self._post("/completion", asked).get("completion_probabilities")
        if found is None:
            raise StageFailed("export --what gguf: llama.cpp's server returned no log-probabilities. Update xllamacpp")
        return GreedyAnswer(
            tuple(int(entry["id"]) for entry in found), tuple(float(entry["logprob"]) for entry in found)
        )

    def _post(self, path: str, asked: dict[str, Any]) -> Any:
        try:
            return self._client.post(path, json=asked).raise_for_status().json()
        except httpx.HTTPError as error:
            raise StageFailed(f"export --what gguf: llama.cpp's server failed at {path} ({error})") from None
