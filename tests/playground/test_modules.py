"""The page's pure modules under Node."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_pure_modules():
    command = ["node", "--test", str(HERE / "answer.test.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_page_is_small_and_loads_nothing_from_elsewhere():
    folder = HERE.parents[1] / "trimode" / "server" / "playground"
    files = list(folder.iterdir())
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "http://" not in text
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "style=" not in page, "the content security policy forbids inline styles"
    assert "<script>" not in page
