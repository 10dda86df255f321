"""The code that a model card shows: a few lines that load the export without this package. Tests run them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_rlhf.config.schema import Config, ModelConfig

_MERGED = """\
A plain transformers model in {dtype}, the adapter merged in; no other package is needed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForCausalLM.from_pretrained({folder}, dtype="auto")
messages = [{{"role": "user", "content": "How do I boil an egg?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

`generation_config.json` samples as the run did: temperature alone, no top-k or top-p.

For llama.cpp, as one GGUF file, and in 4 bits; and for Ollama, by the `Modelfile` here, which samples likewise:

```sh
python llama.cpp/convert_hf_to_gguf.py {path} --outfile model.gguf --outtype {outtype}
llama.cpp/build/bin/llama-quantize model.gguf model-Q4_K_M.gguf Q4_K_M
ollama create my-model -f {path}/Modelfile
```

Where Ollama does not know this architecture as safetensors, put `FROM ./model.gguf` into the `Modelfile`."""

_ADAPTERS = """\
PEFT folders: {folders}. {trained_on}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM{more}

base = AutoModelForCausalLM.from_pretrained("BASE"{quantised})
model = PeftModel.from_pretrained(base, {best})
```

`BASE` is the base model named below{gguf}.{heads}"""
_HEADS = """ `reward` and `critic` are sequence classifiers with one label that read the
states after {layers} decoder layers (`num_hidden_layers={layers}`); `reward/reward.json` says how a score is read, and
`export --what reward` makes a plain transformers model of it."""
_SAYS = {
    "sft": "`sft` is the fine-tuned model",
    "policy": "`policy` the aligned one",
    "reward": "`reward` the reward model",
    "critic": "`critic` PPO's value model",
}
_TRAINED_ON = {
    "nf4": "They were trained on the base quantised as below, and fit best there.",
    "int8": "They were trained on the base in 8 bits, and fit best there; the lines below load it unquantised, which "
    "is close to it and not the same.",
    "none": "They were trained on the base as it is, unquantised, and fit best there.",
}
_NF4 = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)"""

_REWARD = """\
{class_says}

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = AutoModelForSequenceClassification.from_pretrained({folder}, dtype="auto")


@torch.no_grad()
def score(messages, answer):
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    response = tokenizer(answer, add_special_tokens=False)["input_ids"] + [model.config.eos_token_id]
    ids = torch.tensor([prompt + response])
    {raw}
    return (raw - {mean!r}) / {std!r}


print(score([{{"role": "user", "content": "How do I boil an egg?"}}], "Ten minutes in boiling water."))
```

A score is shifted and scaled to mean 0 and deviation 1 over {scale_of}; `lowrank_rlhf` in `config.json`
holds these numbers. The prompt must end where the answer begins and the answer with `{eos}`, as above: a chat template
may put a newline after it."""
_LAST_SAYS = "A standard sequence classifier with one label: its output is the raw score, read at the last token."
_MEAN_SAYS = """\
**The output of `AutoModelForSequenceClassification` is not this model's score.** The score is the *mean* over the
answer's tokens of what the head gives at each, and that class can only read the last token. The weights are all there,
and these lines read them right:"""
_LAST = "raw = model(ids).logits[0, 0].item()"
_MEAN = """states = model.base_model(ids).last_hidden_state[0, len(prompt) :]
    raw = model.score(states).float().mean().item()"""


def merged_usage(folder: str, dtype: str) -> str:
    """Markdown with the code that loads a merged model, and the commands that convert it."""
    outtype = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    return _MERGED.format(folder=json.dumps(folder), path=shlex.quote(folder), dtype=dtype, outtype=outtype)


def reward_usage(folder: str, reward: Mapping[str, Any]) -> str:
    """The same of a reward model with these pooling, `score_mean`, `score_std` and end-of-turn token (`eos`).

    `scale_of` says whose scores have that mean.
    """
    last = reward["pooling"] == "last"
    return _REWARD.format(
        folder=json.dumps(folder),
        class_says=_LAST_SAYS if last else _MEAN_SAYS,
        raw=_LAST if last else _MEAN,
        mean=reward["score_mean"],
        std=reward["score_std"],
        eos=reward["eos"],
        scale_of=reward["scale_of"],
    )


def scale_of(config: Config, about: Mapping[str, Any]) -> str:
    """Whose scores the mean and deviation in `reward.json` are of."""
    if config.rank.source == "dataset" and about.get("scores_of") == "SFT answers":  # the ranked ones are not SFT's
        return "SFT's answers to some of the run's prompts"
    return "the run's held-out answers"


def adapters_usage(folder: str, names: Sequence[str], model: ModelConfig, layers: int | None) -> str:
    """The same of the adapters of these names; those with a head read so many layers."""
    quantised = model.quantization == "nf4"
    return _ADAPTERS.format(
        folders=", ".join(words for name, words in _SAYS.items() if name in names),
        trained_on=_TRAINED_ON[model.quantization],
        best=json.dumps(f"{folder}/{'policy' if 'policy' in names else 'sft'}"),
        more=", BitsAndBytesConfig" if quantised else "",
        quantised=_NF4 if quantised else "",
        gguf=" (a GGUF file: dequantise it to a folder of safetensors)" if model.source.endswith(".gguf") else "",
        heads=_HEADS.format(layers=layers) if layers else "",
    )
