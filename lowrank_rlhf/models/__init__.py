"""Base model, LoRA roles and sampling. The only package that imports peft and bitsandbytes."""
