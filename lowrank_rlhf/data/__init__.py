"""Examples: reading, detecting the format, checking, splitting and inspecting."""
