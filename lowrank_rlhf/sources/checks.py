"""Check that a folder contains a supported base model, before any weight is read."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.run.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = (
    "If you trust them, convert them once with transformers: AutoModelForCausalLM.from_pretrained(OLD)."
    "save_pretrained(NEW), and the same with AutoTokenizer; then set model.source to NEW"
)
_LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")
"""Weight of a decoder layer, not of a vision or audio encoder."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class BadModel(UserError):
    """Error of a model's files; `problem` is its message without the setting."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"model.source: {problem}")
        self.problem = visible(problem)


def check_folder(folder: Path, source: str) -> None:
    """Raise `BadModel` if config, weights or tokenizer are missing, damaged or pickled."""
    config = _config(folder, source)
    _check_not_quantised(config, source)
    _check_layers(
        config, [each for name in _weight_files(folder, source) for each in _names(folder, name, source)], source
    )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise BadModel(f"{source}: no tokenizer found ({', '.join(_TOKENIZERS)}). Copy it into the folder")


def _config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "config.json"
    if path.is_file():
        config = read_json(path)
        if config is None:
            raise BadModel(f"{source}: {path} is not a JSON object. Fetch the model again")
        return config
    if (folder / "adapter_config.json").is_file():
        raise BadModel(f"{source}: this is an adapter. Set model.source to its base model, sft.adapter to this folder")
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        raise BadModel(f"{source}: a folder of GGUF files. Set one of them: {ggufs[0]}")
    raise BadModel(
        f"{source}: config.json not found. A model is a folder with config.json, weights in safetensors and a "
        "tokenizer, as save_pretrained of transformers writes it"
    )


def check_architecture(folder: Path, source: str) -> None:
    """Raise `BadModel` if the model is not a causal language model or its type is unknown to transformers."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, __version__

    config = _config(folder, source)
    kind, named = str(config.get("model_type")), config.get("architectures") or []
    shown = ", ".join(map(str, named)) or kind
    if kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise BadModel(
                f"{source}: {shown} contains Python code, which is never run here (trust_remote_code is off). "
                "Choose a model of a family that transformers supports"
            )
        raise BadModel(f"{source}: transformers {__version__} does not know the model type {kind}. Try a newer version")
    if config.get("is_encoder_decoder"):
        raise BadModel(f"{source}: {shown} is an encoder-decoder. Only causal language models are supported")
    embedding = (folder / "modules.json").is_file()
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[kind], None)
    if embedding or causal is None or (named and causal.__name__ not in named):
        what = "an embedding model" if embedding else "not a causal language model"
        if "text_config" in config:
            what += ": transformers has no class for its text alone"
        raise BadModel(f"{source}: {shown} is {what}. Choose one whose architecture ends in ForCausalLM")


def _weight_files(folder: Path, source: str) -> list[str]:
    if (folder / INDEX).is_file():
        shards = (read_json(folder / INDEX) or {}).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise BadModel(f"{source}: {folder / INDEX} is damaged. Fetch the model again")
        names = sorted(set(map(str, shards.values())))
        if outside := [name for name in names if Path(name).name != name]:
            raise BadModel(f"{source}: {folder / INDEX} names {outside[0]}, which is not in the folder. Fetch it again")
        return names
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickled:
            raise BadModel(
                f"{source}: contains its weights only as a pickle ({pickled[0]}), which can run code when it is read "
                f"and is never loaded here. {_CONVERT}"
            )
    return [WEIGHTS]


def _names(folder: Path, name: str, source: str) -> list[str]:
    """Return the names of the tensors in a file; opening it compares the header with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / name, framework="numpy") as file:
            return list(file.keys())
    except FileNotFoundError:
        raise BadModel(
            f"{source}: no {name} in {folder}. Fetch the model again, or choose one with weights in safetensors: "
            "pickles (.bin), which can run code when they are read, are never fetched"
        ) from None
    except (SafetensorError, OSError) as error:
        raise BadModel(f"{source}: {folder / name} is damaged or cut short ({error}). Fetch the model again") from None


def _check_not_quantised(config: Mapping[str, Any], source: str) -> None:
    """Raise `BadModel` for quantised weights, except mxfp4, which transformers dequantises when it loads them."""
    found = config.get("quantization_config") or {}
    method = str(found.get("quant_method", "unknown method")) if isinstance(found, dict) else "unknown method"
    if found and method != "mxfp4":
        raise BadModel(
            f"{source}: the weights are already quantised ({method}). Choose the original model in 16 or 32 bits, "
            "which model.quantization quantises when it is loaded"
        )


def _check_layers(config: Mapping[str, Any], names: Iterable[str], source: str) -> None:
    """Raise `BadModel` for weights of more decoder layers than config.json names: they would be left out silently."""
    about = {**config, **(config.get("text_config") or {})}
    layers, more = about.get("num_hidden_layers"), about.get("num_nextn_predict_layers") or 0
    found = [int(match[1]) + 1 for match in map(_LAYER.match, names) if match]
    if type(layers) is int and found and max(found) > layers + more:
        raise BadModel(
            f"{source}: the files have weights of {max(found)} layers, but config.json has {layers}. Config and "
            "weights belong to different models: fetch both again"
        )
