"""The one place that knows peft and bitsandbytes: the base, the roles on it, and how it generates."""
