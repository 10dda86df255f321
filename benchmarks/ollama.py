"""Compare a Modelfile's prompts with the run's own, and llama.cpp, which Ollama runs, with transformers.

    python benchmarks/ollama.py                               the base of the quickstart
    python benchmarks/ollama.py path/to/run --gguf model.gguf  a run's config, and a GGUF file of its model

Twelve conversations of one to three rounds, with and without a system turn, are rendered by the Modelfile's template.
Their token ids must be those of the run's chat template, by its tokenizer and by llama.cpp's; then both sample greedily
from them. llama.cpp takes part if `xllamacpp` can be imported (`pip install xllamacpp`, in an environment of its own).
The exit code is 1 if a token id of a prompt differs. It does not depend on the sampled answers: two libraries round
differently, and of two tokens of nearly equal probability they may choose different ones.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import httpx
import torch
from go_template import go_template, rendered_by_go

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config, DataConfig
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.export.ollama import Turn, modelfile
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.chat_template import render
from lowrank_rlhf.sources.gguf import download_gguf
from lowrank_rlhf.sources.tokenizer import added_first

CONVERSATIONS = 12
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}


def main() -> None:
    """Compare and print a Markdown table."""
    given = _parse()
    config = load_config(given.config / "config.yaml" if given.config.is_dir() else given.config)
    settings = {"compute_dtype": "float32", "device": "cpu", "threads": given.threads}
    base = load_base(config.model.model_copy(update=settings), Progress())
    talks = conversations()
    prompts, expected = modelfile_prompts(base, config, talks), [_ids(base, talk) for talk in talks]
    equal = [base.tokenizer(text)["input_ids"] == ids for text, ids in zip(prompts, expected, strict=True)]
    print(f"| {len(talks)} conversations, {sum(map(len, expected)) / len(talks):.1f} tokens on average | equal |")
    print("|---|---|")
    print(f"| token ids of the Modelfile's prompt, by transformers' tokenizer | {sum(equal)} |")
    try:
        import xllamacpp  # noqa: F401 - not a dependency
    except ImportError:
        print("xllamacpp is not installed: llama.cpp was not compared", file=sys.stderr)
    else:
        with TemporaryDirectory() as folder:
            gguf = given.gguf or download_gguf(config.model.source, Path(folder))
            found = llama_cpp(gguf, prompts, given.tokens, str(base.tokenizer.convert_ids_to_tokens(base.eos)))
        equal += [ids == own for (ids, _), own in zip(found, expected, strict=True)]
        print(f"| the same by llama.cpp's | {sum(equal[len(talks) :])} |")
        answers = [greedy_answer(base, ids, given.tokens) for ids in expected]
        same = [own == text.strip() for own, (_, text) in zip(answers, found, strict=True)]
        print(f"| greedy answers of {given.tokens} tokens | {sum(same)} |")
        for own, (_, text), alike in zip(answers, found, same, strict=True):
            if not alike:
                print(f"\ntransformers: {own!r}\nllama.cpp:    {text.strip()!r}")
    sys.exit(not all(equal))


def conversations() -> list[list[Turn]]:
    """Return conversations of one to three rounds, every second one after a system turn."""
    data = load_prompt_data(DataConfig(prompts="builtin:everyday", held_out=0), seed=0)
    rows = iter(data.demonstrations)
    talks = []
    for index in range(CONVERSATIONS):
        turns = [SYSTEM] if index % 2 else []
        for _ in range(index % 3):
            row = next(rows)
            turns += [_asked(row.prompt), {"role": "assistant", "content": row.response}]
        talks.append([*turns, _asked(next(rows).prompt)])
    return talks


def modelfile_prompts(base: Base, config: Config, talks: Sequence[Sequence[Turn]]) -> list[str]:
    """Return the texts that Ollama gives to its tokenizer."""
    eos = str(base.tokenizer.convert_ids_to_tokens(base.eos))
    text = modelfile(partial(render, base.tokenizer), added_first(base.tokenizer), eos, config)
    return [rendered_by_go(go_template(text), talk) for talk in talks]


def llama_cpp(gguf: Path, prompts: Sequence[str], tokens: int, eos: str) -> list[tuple[list[int], str]]:
    """Return llama.cpp's token ids of each prompt, and its greedy answer."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads, params.warmup = str(gguf), 1024, 1, False
    server = xllamacpp.Server(params)
    sampling = {"n_predict": tokens, "temperature": 0, "repeat_penalty": 1.0, "cache_prompt": False, "stop": [eos]}
    found = []
    for prompt in prompts:
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        ids = httpx.post(f"{server.listening_address}/tokenize", json=asked).raise_for_status().json()["tokens"]
        answer: Any = server.handle_completions({"prompt": prompt, **sampling})
        found.append((ids, str(answer["choices"][0]["text"])))
    return found


def greedy_answer(base: Base, ids: Sequence[int], tokens: int) -> str:
    """Return the text of the most probable tokens, one after the other."""
    found: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([[*ids, *found]]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
        if found[-1] == base.eos:
            break
    return base.decode(found)


def _asked(prompt: Any) -> Turn:
    return {"role": "user", "content": str(prompt.messages[-1].content)}


def _ids(base: Base, talk: Sequence[Turn]) -> list[int]:
    encoded: Any = base.tokenizer.apply_chat_template(list(talk), add_generation_prompt=True)
    return list(encoded["input_ids"])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=Path("quickstart"), help="a run folder, or a config")
    parser.add_argument("--gguf", type=Path, help="a GGUF file of the model; else the one of model.source is fetched")
    parser.add_argument("--tokens", type=int, default=16, help="length of the answers")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
