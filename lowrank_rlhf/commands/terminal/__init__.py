"""Terminal output of the commands: tables, the ranking prompt, chat."""
