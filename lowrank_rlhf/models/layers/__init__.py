"""Replacements for layers of the base model, and the rules for combining them.

- Base weights: unquantised, NF4 (`bnb.nn.Linear4bit`), or 8-bit, where `int8.Int8Linear` replaces every 8-bit layer of
  bitsandbytes when the model is loaded and stays for the lifetime of the base. `weights.dequantised` reads all three.
- Adapters: exactly one of three is active. `Roles.acting_as` computes the acting role with `lora_linear.fused` (LoRA
  product over any base weight; layers with DoRA or an adapter bias keep PEFT's), or, if unsloth runs the base, leaves
  the layers to unsloth's kernels. `merging.merged` replaces adapted and quantised layers by plain merged weights, for
  sampling only; it and `acting_as` exclude each other (`Roles.check_free`), and it is not used with unsloth.
- Attention: `attention` serves a base that transformers loaded on a CPU, with any of the above, if the architecture
  supports `sdpa` and `loading.library_check` finds no difference. GPUs, capped scores, attention sinks and unsloth use
  their own; sequences over `attention.LONGEST` tokens fall back to `sdpa`.
- `partial_forward` and `kv_cache` act on the decoder's list of layers and on the cache, and combine with any of these;
  unsloth's decoding does not use `kv_cache`.
"""
