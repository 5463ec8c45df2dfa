"""Tasks of lm-evaluation-harness, in every mode. Needs the extra `eval`."""
