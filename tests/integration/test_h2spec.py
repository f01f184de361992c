"""The gateway's HTTP/2, checked by h2spec, a conformance suite that others wrote."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = (
    "GOBIN=$PWD/.tools/bin go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
)
LEAST_CASES = 146
"""Cases that this version of h2spec has; fewer would mean that it did not run them."""

pytestmark = pytest.mark.integration


@pytest.fixture
def h2spec() -> str:
    """Where the program is."""
    places = os.pathsep.join((os.environ.get("PATH", ""), str(ROOT / ".tools" / "bin")))
    found = shutil.which("h2spec", path=places)
    if found is None:
        pytest.skip(f"h2spec is missing: make tools, or {INSTALL}")
    return found


@pytest.fixture
def port() -> Iterator[int]:
    """A server of its own, for one test."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.h2spec_server"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


def test_every_case_passes(h2spec: str, port: int, tmp_path: Path) -> None:
    """Any HTTP/2 client finds the rules kept: no case of h2spec fails, none is left out."""
    report = tmp_path / "report.xml"
    command = [h2spec, "-h", "127.0.0.1", "-p", str(port), "-o", "2", "-j", str(report), "-S"]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    cases = list(ET.parse(report).getroot().iter("testcase"))
    missed = [
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if {"failure", "error", "skipped"} & {child.tag for child in case}
    ]
    assert missed == [], ran.stdout
    assert len(cases) >= LEAST_CASES, ran.stdout
    assert ran.returncode == 0, ran.stdout
