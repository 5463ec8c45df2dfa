"""What the mode `auto` decides by: costs of passes, chances of drafts, and the policy over both."""
