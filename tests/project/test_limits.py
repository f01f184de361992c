"""The table of limits is true: settings, metrics and tests that it names are there."""

import json
import re
from pathlib import Path

from attrs import fields
from click.testing import CliRunner

from elkeid.cli import main
from elkeid.cli.limits import all_limits, markdown_table
from elkeid.config import AgentCenterSettings, DiscoverySettings, Settings

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = all_limits(Settings())


def test_every_test_that_is_named_exists() -> None:
    """By file and function."""
    missing = []
    for limit in TABLE:
        path, _, name = limit.test.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file() or f"def {name}(" not in file.read_text():
            missing.append(limit.test)
    assert missing == []


def test_every_metric_that_is_named_exists() -> None:
    """In the one place where metrics are named."""
    text = (ROOT / "elkeid" / "metrics.py").read_text()
    parts = set(re.findall(r'"([a-z_{}.]+)"', text))
    missing = []
    for limit in TABLE:
        prefixes = ("", "elkeid_ac_", "elkeid_ac_tags_", "elkeid_ac_uploads_")
        prefixes += ("elkeid_ac_results_",)
        names = {limit.metric.removeprefix(prefix) for prefix in prefixes}
        names |= {name.removesuffix("_total") for name in names}
        if not names & parts:
            missing.append(limit.metric)
    assert missing == []


def test_every_bound_among_the_settings_is_in_the_table() -> None:
    """Seconds, bytes, rates and bursts of what peers may cost."""
    kinds = ("_limit", "_bytes", "_seconds", "_rate", "_burst")
    names = {
        f"{section}.{each.name}"
        for section, kind in (
            ("agentcenter", AgentCenterSettings),
            ("discovery", DiscoverySettings),
        )
        for each in fields(kind)
        if each.name.endswith(kinds)
    }
    # How long a batch waits for tags, what the outbox keeps, and how long silent instances are
    # kept cost no peer anything.
    assert names - {limit.name for limit in TABLE} == {
        "agentcenter.tag_wait_seconds",
        "agentcenter.results_cap_bytes",
        "discovery.preserve_seconds",
    }


def test_the_document_is_the_table() -> None:
    """docs/limits.md has what `elkeid limits --markdown` prints by default."""
    assert markdown_table(TABLE) in (ROOT / "docs" / "limits.md").read_text()


def test_command(tmp_path: Path) -> None:
    """Values are those of the settings, in each of the forms."""
    (tmp_path / "elkeid.toml").write_text("[agentcenter]\nconnection_limit = 77\n")
    argv = ["--config", str(tmp_path / "elkeid.toml"), "limits"]
    plain = CliRunner().invoke(main, argv)
    assert plain.exit_code == 0
    assert "agentcenter.connection_limit = 77" in plain.output
    lines = CliRunner().invoke(main, [*argv, "--json"]).output.splitlines()
    assert json.loads(lines[0])["value"] == 77
    assert "| 77 |" in CliRunner().invoke(main, [*argv, "--markdown"]).output
