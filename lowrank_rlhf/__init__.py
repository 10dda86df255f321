"""RLHF on one small machine: LoRA adapters on one 4-bit base act as policy, reference, reward and critic."""

__version__ = "0.1.0"
