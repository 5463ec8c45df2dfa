"""Drafting and verifying: draft trees, the passes for them, drafts from earlier text."""
