"""Bytes of the tensors of one forward and backward pass, counted in the code that makes them.

Each function names the tensors that it counts. docs/planning.md has the formulas, and the architectures tested.
"""

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.sources.model_shape import Shape

CHUNK = 256
"""Tokens whose logits exist at once (models/logprobs.py)."""
TRL_COLUMNS = 32_768
"""Vocabulary entries whose logits TRL's loss computes at once."""
TRL_TOKENS, TRL_TOKENS_ON_GPU = 512, 4096
"""Tokens whose logits it computes at once (training/trl_loop.py)."""


COUNTED = frozenset({"llama", "qwen2", "qwen3", "gemma3", "gemma3_text"})
"""Architectures for which `saved` is compared with what autograd saves; a GGUF file's gemma3 is gemma3_text."""


def saved(shape: Shape, lora: LoraConfig, width: int) -> float:
    """Return the bytes that one decoder layer saves for one token until its backward.

    Inputs of both norms; queries, keys and values; the MLP's two projections and the activation of the first; the
    inputs of each layer with an adapter; and the product of these with A. Gemma has four norms, which compute in
    float32 and save its copy of their input, and two more for queries and keys; those of Qwen3 save their input.
    """
    h, f, q, kv = shape.hidden, shape.mlp, shape.query, shape.key_value
    adapted = set(shape.linears if lora.target_modules == "all-linear" else lora.target_modules) & set(shape.linears)
    inputs = (
        (h, {"q_proj", "k_proj", "v_proj", "qkv_proj"}),
        (q, {"o_proj"}),
        (h, {"gate_proj", "up_proj", "gate_up_proj"}),
        (f, {"down_proj"}),
    )
    read = sum(size for size, layers in inputs if layers & adapted)
    norms = width * 2 * h
    if shape.architecture.startswith("gemma"):
        norms = 4 * 4 * h + (4 * (q + kv) if shape.architecture.startswith("gemma3") else 0)
    elif shape.architecture in ("qwen3", "qwen3_moe"):
        norms += width * (q + kv)
    return norms + width * (q + 2 * kv + 3 * f + read + lora.rank * len(adapted))


def logits(tokens: float, vocabulary: int) -> float:
    """Return the bytes of the largest tensors of `token_logprobs`, for that number of response tokens.

    Of one chunk: float32 logits and probabilities, and these in 16 bits. From the second chunk on the former's two
    exist while the next logits are computed, in 16 bits and in float32.
    """
    return (10 if tokens <= CHUNK else 14) * min(CHUNK, tokens) * vocabulary


def trl_logits(tokens: float, hidden: int, vocabulary: int, width: int, *, cuda: bool) -> float:
    """Return the bytes of one tile of TRL's chunked loss in its backward, without Triton.

    The tile; in float32 its copy, the scaled logits, log-probabilities, probabilities, their gradient, the target's
    mark and the difference of the last two, and the mark as a boolean. After these the tile in float32 and its part of
    the projection in float32 exist, which counts for few tokens.
    """
    rows, columns = min(tokens, TRL_TOKENS_ON_GPU if cuda else TRL_TOKENS), min(vocabulary, TRL_COLUMNS)
    return columns * max((width + 29) * rows, (width + 4) * rows + 4 * hidden)
