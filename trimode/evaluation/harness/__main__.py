"""The command line of lm-evaluation-harness, with `--model trimode` known to it.

Its releases up to 0.4.13 do not look for models of other packages.
"""

from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

from trimode.evaluation.harness import lm as _lm  # noqa: F401 - it registers itself

if __name__ == "__main__":
    cli_evaluate()
