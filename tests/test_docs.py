"""Tables in the docs are those of the code."""

from pathlib import Path

import pytest

from tests.clients import catalogue
from trimode.config import DECODING_FIELDS, MODES
from trimode.decoding import MODE_SPECS, RULES, modes_reading

ROOT = Path(__file__).parents[1]
DECODING = ROOT / "docs" / "decoding.md"


def options_table():
    """Each decoding option, what it means, and the modes that read it."""
    rows = ["| option | meaning [default] | modes |", "|---|---|---|"]
    for name, meaning in DECODING_FIELDS.items():
        modes = modes_reading(name)
        shown = "all" if set(modes) == set(MODES) else ", ".join(modes)
        rows.append(f"| `{name}` | {meaning} | {shown} |")
    return rows


def rules_table():
    """Each commit rule with its bar's unit and default."""
    rows = ["| rule | commits | unit of the bar | default |", "|---|---|---|---|"]
    for name, rule in RULES.items():
        default = "" if name == "quota" else f"{rule.threshold:g}"
        rows.append(f"| `{name}` | {rule.commits} | {rule.unit} | {default} |")
    return rows


@pytest.mark.parametrize("table", [options_table, rules_table])
def test_docs_decoding_has_the_table_of_the_code(table):
    text, rows = DECODING.read_text(encoding="utf-8"), table()
    missing = [row for row in rows if row not in text.splitlines()]
    assert not missing, "docs/decoding.md lacks\n" + "\n".join(missing)
    assert "\n".join(rows) in text, "docs/decoding.md has the rows in another order"


def test_docs_decoding_says_of_each_mode_what_the_code_says():
    lines = DECODING.read_text(encoding="utf-8").splitlines()
    for mode, spec in MODE_SPECS.items():
        line = next((line for line in lines if line.startswith(f"| `{mode}` |")), None)
        assert line is not None, f"docs/decoding.md has no row for the mode {mode}"
        assert ("equals `ar`'s" in line or mode == "ar") == spec.lossless
        assert line.endswith(f"| {spec.summary} |")


def test_docs_metrics_says_how_passes_of_each_mode_count():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for mode in MODES:
        assert f"- `{mode}`" in text, f"docs/metrics.md says nothing of the mode {mode}"


def test_docs_protocols_has_the_clients_that_are_run():
    text = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert "\n".join(catalogue.table()) in text, "write tests/clients/catalogue.py's table()"


def test_docs_evaluation_names_every_scorer_and_local_task():
    from trimode.evaluation.scoring import NAMES

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    tasks = (ROOT / "trimode" / "evaluation" / "harness" / "tasks").glob("*.yaml")
    for name in (*NAMES, *(task.stem for task in tasks)):
        assert f"| `{name}` |" in text, f"docs/evaluation.md has no row for {name}"


def test_docs_benchmarks_has_the_tables_of_the_results():
    from benchmarks.page import PAGE, filled

    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text, "run python benchmarks/page.py"


def folders():
    """Every folder of the repository that holds files of ours."""
    top = ("trimode", "benchmarks", "reproduce", "examples", "docs")
    for path in (path for name in top for path in (ROOT / name).rglob("*")):
        skipped = path.name.startswith(("__pycache__", "."))
        if path.is_dir() and not skipped and any(child.is_file() for child in path.iterdir()):
            yield path.relative_to(ROOT)


def test_contributing_names_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    known = [folder for folder in folders() if folder.parts[0] == "trimode"]
    assert len(known) > 20
    for folder in folders():
        inner = f"`{folder.name}/`" in text and f"`{folder.parts[0]}/`" in text
        above = f"`{folder.parent}/`" in text and folder.parent.name in ("built_in", "results")
        assert f"`{folder}/`" in text or inner or above, f"{folder} is not in CONTRIBUTING.md"


def test_docs_vision_names_what_is_read_and_its_limits():
    from trimode.checkpoints.families import VISION_LAYOUTS
    from trimode.server import ServerSettings
    from trimode.text.image_parts import DETAILS
    from trimode.vision import DEFAULT_LIMITS
    from trimode.vision.images import FORMATS

    text = (ROOT / "docs" / "vision.md").read_text(encoding="utf-8")
    for layout in VISION_LAYOUTS:
        assert f"| `{layout}` |" in text
    for kind in FORMATS:
        assert kind.lower() in text.lower()
    for detail in DETAILS:
        assert f"`{detail}`" in text or f"detail: {detail}" in text
    assert f"| a file | {DEFAULT_LIMITS.bytes // 2**20} MiB |" in text
    assert f"{DEFAULT_LIMITS.pixels / 1e6:.0f} million" in text
    assert f"`trimode serve --max-images`, {ServerSettings().max_images} |" in text
