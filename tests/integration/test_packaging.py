"""What is built is whole: it runs where nothing else of ours is."""

import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.integration.servers import DEADLINE, free_ports, running, settings_text

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.integration
BUILD_SECONDS = 300.0


def run(*argv: object, cwd: Path) -> str:
    """Run a program; what it printed."""
    done = subprocess.run(
        [str(each) for each in argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution, and wheels made of the checkout and of that."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = run("git", "ls-files", "-z", cwd=ROOT) if (ROOT / ".git").exists() else ""
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    if not listed:
        pytest.skip("needs a git checkout: git clone it")
    venv.create(folder / "builder", with_pip=True)
    python = folder / "builder" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "setuptools>=77", cwd=folder)
    run(python, "setup.py", "-q", "sdist", "-d", folder / "sdist", cwd=source)
    run(python, "setup.py", "-q", "bdist_wheel", "-d", folder / "wheel", cwd=source)
    (packed,) = (folder / "sdist").iterdir()
    (folder / "unpacked").mkdir()
    run("tar", "-xzf", packed, "-C", folder / "unpacked", cwd=folder)
    (unpacked,) = (folder / "unpacked").iterdir()
    run(python, "setup.py", "-q", "bdist_wheel", "-d", folder / "again", cwd=unpacked)
    return folder


def only(folder: Path) -> Path:
    """The one file of a folder."""
    (found,) = folder.iterdir()
    return found


def test_source_distribution_is_whole(built: Path) -> None:
    """A wheel made of the source distribution is the one made of the checkout."""
    names = [zipfile.ZipFile(only(built / which)).namelist() for which in ("wheel", "again")]
    assert sorted(names[0]) == sorted(names[1])
    with tarfile.open(only(built / "sdist")) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "Makefile", "README.md", "tac/all.tac", "keys/README.md"):
        assert name in inside
    assert "tests/project/test_keys.py" in inside


def test_wheel_holds_what_runs(built: Path) -> None:
    """The wheel has every module and data file of the package, the plugin, and no tests."""
    names = set(zipfile.ZipFile(only(built / "wheel")).namelist())
    for path in (built / "source" / "elkeid").rglob("*"):
        if path.is_file():
            assert str(path.relative_to(built / "source")) in names
    assert "twisted/plugins/elkeid_dropin.py" in names
    assert "twisted/plugins/__init__.py" not in names
    assert not [name for name in names if name.startswith(("tests", "bench", "twisted/_"))]


def test_wheel_runs_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    """Installed from the wheel, twistd finds the plugin and serves every role."""
    environment, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", only(built / "wheel"), cwd=folder)
    # The dependencies of this environment, without its own link to the checkout: a path in a
    # .pth file is searched, but the .pth files found there are not read.
    places = sysconfig.get_paths()
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    (site / "dependencies.pth").write_text(f"{places['purelib']}\n{places['platlib']}\n")
    where = run(python, "-c", "import elkeid; print(elkeid.__file__)", cwd=folder)
    assert where.startswith(str(environment))
    assert "keys" in run(environment / "bin" / "elkeid", "--help", cwd=folder)

    launch = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
    (folder / "elkeid.toml").write_text(settings_text(free_ports(4)))
    argv = [str(python), "-c", launch, "-n", "--pidfile=", "elkeid"]
    with running(argv, folder) as server:
        assert server.stop() == -signal.SIGTERM
    argv = [str(python), "-m", "twisted", "elkeid"]
    with running(argv, folder) as server:
        assert server.stop() == -signal.SIGTERM
    assert sorted(path.name for path in folder.iterdir()) == ["data", "elkeid.toml", "keys"]


def test_makefile_names_only_what_is_there() -> None:
    """Every target of the Makefile's head can be made, as far as a dry run tells."""
    text = (ROOT / "Makefile").read_text()
    (phony,) = (line for line in text.splitlines() if line.startswith(".PHONY:"))
    for target in phony.split()[1:]:
        done = subprocess.run(
            ["make", "--dry-run", f"PYTHON={sys.executable}", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        assert f"make {target}" in text
