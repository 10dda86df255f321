"""Replacements for layers of the base model, and the rules for combining them.

- Base weights: unquantised, NF4 (`bnb.nn.Linear4bit`), or 8-bit, where `int8.Int8Linear` replaces every 8-bit layer of
  bitsandbytes when the model is loaded and stays for the lifetime of the base. `weights.dequantised` reads all three.
- Adapters: every adapted or quantised layer keeps its place in PEFT's tree and gets one other forward, when `Roles` is
  made (`lora_linear.Slots`, decision 0026), with one product for those that read the same input (decision 0029). It
  computes the adapter in its slot (`Roles.acting_as`), a merged weight (`merging.merged`, for sampling only), or the
  base's own layer. The first two exclude each other (`Roles.check_free`). If unsloth runs the base there are no slots:
  its kernels read PEFT's layers.
- Attention: `attention` serves a base that transformers loaded on a CPU, with any of the above, if the architecture
  supports `sdpa` and `loading.library_check` finds no difference. GPUs, capped scores, attention sinks and unsloth use
  their own; sequences over `attention.LONGEST` tokens fall back to `sdpa`.
- `norms` and `rotary` replace forwards when the base is loaded, each where a probe finds the same results.
- `partial_forward` and `kv_cache` act on the decoder's list of layers and on the cache, and combine with any of these;
  unsloth's decoding does not use `kv_cache`.
"""
