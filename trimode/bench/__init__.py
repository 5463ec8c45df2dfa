"""Does a mode pay on a user's own prompts? Measured side by side, judged by statistics."""
