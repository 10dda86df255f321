"""RLHF on one small machine: LoRA adapters on one 4-bit base act as policy, reference, reward and critic."""

import logging

__version__ = "0.1.0"

# On CPUs with AVX512-BF16 bitsandbytes looks for an optional kernel package when it is imported, by us or by TRL, and
# warns where there is none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
