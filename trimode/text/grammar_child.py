"""The process of `grammar_check`: a grammar a line in, a verdict a line out. Imports little.

It is a script, not a module of the package: importing the package takes a hundred times as long.
"""

import json
import resource
import sys

import llguidance

_BYTES = llguidance.LLTokenizer("byte")


def verdict(grammar: str | None) -> tuple[str, list[str]]:
    """Why a grammar is refused, or the empty text; and what of it is not enforced.

    None asks whether the process has started.
    """
    if grammar is None:
        return "", []
    limits = llguidance.LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
    matcher = llguidance.LLMatcher(_BYTES, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return reason(matcher.get_error()), matcher.get_grammar_warnings()


def reason(error: str) -> str:
    """The library's error in one line: without the excerpt of the grammar, which begins " 1 |"."""
    lines = []
    for line in error.strip().splitlines():
        if line.lstrip()[:1].isdigit() and "|" in line[:8]:
            break
        if line.strip(" ^"):
            lines.append(line.strip())
    return " ".join(lines)


def main() -> None:
    """Answer until the input ends."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = used + int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(verdict(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
