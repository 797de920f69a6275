"""What texts point at is there."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent


class CitationTests(SynchronousTestCase):
    def test_specification(self) -> None:
        """Docstrings give their sources as pages of the specification."""
        pages = {page.name for page in (ROOT / "docs/specification").glob("*.md")}
        cited: dict[str, Path] = {}
        for room in "pvecfs", "tests", "benchmarks", "docs":
            for path in sorted((ROOT / room).rglob("*")):
                if path.suffix in (".py", ".md"):
                    for page in re.findall(r"\b[0-9]{2}-[a-z]+\.md\b", path.read_text()):
                        cited.setdefault(page, path)
        self.assertIn("10-tree.md", cited)
        self.assertEqual({page: path for page, path in cited.items() if page not in pages}, {})

    def test_test_modules(self) -> None:
        """Texts name test modules as trial takes them."""
        files = [ROOT / "Makefile", ROOT / "README.md", ROOT / ".ci/run"]
        files += [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
        for room in "pvecfs", "tests", "benchmarks", "docs":
            files += [path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md")]
        cited: dict[str, Path] = {}
        for path in files:
            for module in re.findall(r"\btests\.(test_\w+)", path.read_text()):
                cited.setdefault(module, path)
        self.assertIn("test_leaks", cited)
        missing = {module: path for module, path in cited.items() if not (ROOT / "tests" / f"{module}.py").exists()}
        self.assertEqual(missing, {})
