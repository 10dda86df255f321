"""Exchange of prompts and rankings with other annotation tools."""
