"""What the documents say is so."""

import json
import re
from pathlib import Path
from typing import Any

from attrs import fields

from elkeid.config import Settings

ROOT = Path(__file__).resolve().parent.parent.parent


def as_toml(value: Any) -> str:
    """A default as it would stand in a settings file."""
    if value is None:
        return "unset"
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def test_settings_are_documented() -> None:
    """docs/settings.md lists every setting with its default, and nothing else."""
    found: dict[str, str] = {}
    section = ""
    for line in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"## \[(\w+)\]", line):
            section = match[1]
        elif match := re.fullmatch(r"\| `(\w+)` \| (.+?) \| (.{10,}) \|", line):
            found[f"{section}.{match[1]}"] = match[2]
    expected = {
        f"{section.name}.{key.name}": as_toml(getattr(getattr(Settings(), section.name), key.name))
        for section in fields(Settings)
        for key in fields(section.type)  # type: ignore[arg-type]
    }
    assert found == expected


def test_links_lead_somewhere() -> None:
    """Every relative link of a document leads to a file that is there."""
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_cited_sections_exist() -> None:
    """Every section of docs/protocol.md that the code cites is there."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#{2,3} (.+)$", text, re.MULTILINE))
    cited = set()
    for path in (ROOT / "elkeid").rglob("*.py"):
        for match in re.finditer(
            r'docs/protocol\.md, ("[^"]+"(?:(?:,| and) "[^"]+")*)', path.read_text()
        ):
            cited |= set(re.findall(r'"([^"]+)"', match[1]))
    assert len(cited) > 10
    assert cited <= headings
