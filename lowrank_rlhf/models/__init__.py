"""The one place that knows peft and bitsandbytes: the base, the roles on it, and how it generates."""

import logging

# On CPUs with AVX512-BF16 bitsandbytes looks for an optional kernel package as it is imported, and warns without it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
