"""The package as people get it: from a checkout, from a wheel, beside Hugging Face's `kernels`."""

from __future__ import annotations

import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"fastvae.kernels": "kernels", "fastvae.data_tools": "data_tools"}
LINKS = {"fastvae/kernels": "../kernels", "fastvae/data_tools": "../data_tools"}
TOP_FOLDERS = ("fastvae", "kernels", "data_tools", "tests", "benchmarks")


def run(*command: str | Path, cwd: Path, timeout: int = 300) -> str:
    """Run a command without this process's Python paths; return its output or fail with it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def source_files() -> list[Path]:
    """Files git tracks or would track: what it ignores must not be needed, and does not ship."""
    if (ROOT / ".git").exists():
        git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"]
        listed = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        paths = [Path(name) for name in listed.split("\0") if name]
    else:  # an unpacked archive
        paths = [Path(path.name) for path in ROOT.iterdir() if path.is_file()]
        for top in TOP_FOLDERS:
            for folder, subfolders, names in os.walk(ROOT / top):
                here = Path(folder)
                links = [name for name in subfolders if (here / name).is_symlink()]
                subfolders[:] = [n for n in subfolders if n != "__pycache__" and n not in links]
                paths += [(here / name).relative_to(ROOT) for name in names + links]
    return sorted(path for path in paths if os.path.lexists(ROOT / path))


def copy_source(target: Path) -> Path:
    """Copy the working tree, links as links, so that builds leave nothing in the repository."""
    for path in source_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path, follow_symlinks=False)
    return target


def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What setup.py hands to setuptools."""
    seen: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: seen.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return seen


def package_folders() -> dict[str, Path]:
    """Import name -> folder, for each folder that holds Python files; links are not followed."""
    found = {}
    for top in (ROOT / "fastvae", ROOT / "kernels", ROOT / "data_tools"):
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = [n for n in subfolders if not (Path(folder) / n).is_symlink()]
            if any(name.endswith(".py") for name in names):
                parts = Path(folder).relative_to(ROOT).parts
                name = ".".join(parts if parts[0] == "fastvae" else ("fastvae", *parts))
                found[name] = Path(folder)
    return found


def test_setup_lists_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = setup_arguments(monkeypatch)
    packages = arguments["packages"]
    assert isinstance(packages, list)
    assert len(packages) == len(set(packages))
    assert set(packages) == set(package_folders())
    assert arguments["package_dir"] == MAPPED


def test_only_kernels_has_no_init() -> None:
    """With an ``__init__.py``, kernels/ would shadow Hugging Face's package of that name."""
    without = {
        n for n, folder in package_folders().items() if not (folder / "__init__.py").exists()
    }
    assert without == {"fastvae.kernels"}


def test_links_are_relative_and_committed_as_links() -> None:
    if any((ROOT / link).is_file() for link in LINKS):
        pytest.skip("a checkout without symbolic links (core.symlinks=false)")
    for link, target in LINKS.items():
        assert os.readlink(ROOT / link) == target
    if not (ROOT / ".git").exists():
        return
    command = ["git", "-c", "safe.directory=*", "ls-files", "-s", "fastvae"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.splitlines()}
    if modes:  # nothing is tracked before the first commit
        assert {modes.get(link) for link in LINKS} == {"120000"}


@pytest.mark.parametrize("links", ["deleted", "text files"])
def test_checkout_without_links(tmp_path: Path, links: str) -> None:
    """Zips lose the links; git on Windows writes each as a text file holding its target."""
    root = copy_source(tmp_path)
    for link, target in LINKS.items():
        (root / link).unlink()
        if links == "text files":
            (root / link).write_text(target)
    code = "import fastvae.kernels.philox as a, fastvae.data_tools.cli as b\n"
    code += "print(a.__file__, b.__file__)"
    where = run(sys.executable, "-c", code, cwd=root).split()
    assert where == [str(root / "kernels/philox.py"), str(root / "data_tools/cli.py")]


def test_import_is_light() -> None:
    heavy = ["torch", "triton", "numba", "numpy", "matplotlib", "sklearn", "tensorboard", "PIL"]
    heavy += ["ffcv", "gradio", "dask", "webdataset", "tyro"]
    code = f"import sys, fastvae; print([name for name in {heavy} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"


def test_torch_is_pinned_once() -> None:
    pin = re.compile(r"\btorch\s*==")
    files = [ROOT / name for name in ("pyproject.toml", "setup.py", "Makefile", ".ci/run")]
    files += ROOT.glob("requirements*.txt")
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert sum(bool(pin.match(line)) for line in constraints) == 1
    assert [file.name for file in files if pin.search(file.read_text())] == []


def test_no_file_names_a_package_index() -> None:
    """Where packages come from is the machine's business (pip's own configuration)."""
    option = re.compile(r"--(extra-)?index-url|--find-links|PIP_INDEX|(^|\s)-[if]\s+\w+://", re.M)
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "Makefile", ".ci/run"):
        assert not option.search((ROOT / name).read_text()), name


def test_constraints_cover_what_make_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    constraints = (ROOT / "constraints.txt").read_text()
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in wanted}
    assert names <= set(re.findall(r"^[\w.-]+", constraints, re.M))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network from a copy of the working tree."""
    work = tmp_path_factory.mktemp("wheel")
    source = copy_source(work / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run(sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", work, cwd=source)
    (built,) = work.glob("*.whl")
    return built


def test_wheel_contents(wheel: Path) -> None:
    """Each file of the package folders ships, under fastvae/ alone, and nothing besides."""
    folders = {name: folder.relative_to(ROOT) for name, folder in package_folders().items()}
    expected = {
        f"{name.replace('.', '/')}/{path.name}"
        for name, folder in folders.items()
        for path in source_files()
        if path.parent == folder and path.suffix != ".md" and str(path) not in LINKS
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/WHEEL")).split("/")[0]
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}/entry_points.txt").decode())
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["fastvae"]
    assert "fastvae/py.typed" in expected
    assert {name for name in names if not name.startswith(info)} == expected
    assert f"{info}/licenses/LICENSE" in names
    assert dict(scripts["console_scripts"]) == {
        "fastvae": "fastvae.cli:main",
        "fastvae-data": "fastvae.data_tools.cli:main",
    }


STAND_IN = {
    "kernels/__init__.py": "from kernels.hub import get_kernel as get_kernel\n",
    "kernels/hub.py": "def get_kernel(name):\n    return name\n",
    "kernels-0.17.dist-info/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 0.17\n",
    "kernels-0.17.dist-info/INSTALLER": "pip\n",
}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh environment with a stand-in for Hugging Face's `kernels`, then our wheel.

    The dependencies come from the running interpreter through a .pth file, which does not carry
    its editable fastvae along: the wheel is what runs. Yields the environment's site-packages.
    """
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin/python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=environment).strip())
    for name, text in STAND_IN.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    record = "".join(f"{name},,\n" for name in [*STAND_IN, "kernels-0.17.dist-info/RECORD"])
    (site / "kernels-0.17.dist-info/RECORD").write_text(record)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=environment)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    paths |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    yield site
    run(*pip, "uninstall", "--yes", "--quiet", "fastvae", cwd=environment)
    # What Numba has compiled lies beside the kernels, and pip does not know of it.
    left = [path for path in (site / "fastvae").rglob("*") if path.is_file()]
    assert [path for path in left if "__pycache__" not in path.parts] == []
    check_stand_in(site)


def check_stand_in(site: Path) -> None:
    """Each file of the stand-in is as it was written, and none was added."""
    for name, text in STAND_IN.items():
        assert (site / name).read_text() == text
    added = {path.name for path in (site / "kernels").iterdir()} - {"__pycache__"}
    assert added == {"__init__.py", "hub.py"}


def test_wheel_beside_hugging_face_kernels(installed: Path, tmp_path: Path) -> None:
    python = installed.parents[2] / "bin/python"
    code = (
        "import fastvae.kernels.philox as a, fastvae.data_tools.cli as b, kernels\n"
        "from kernels import get_kernel\n"
        "print(a.__file__, b.__file__, kernels.__file__)"
    )
    names = ["fastvae/kernels/philox.py", "fastvae/data_tools/cli.py", "kernels/__init__.py"]
    where = run(python, "-c", code, cwd=tmp_path).split()
    assert where == [str(installed / name) for name in names]
    check_stand_in(installed)


def test_checkout_does_not_shadow_hugging_face_kernels(installed: Path) -> None:
    """From the root of the checkout too, `import kernels` is Hugging Face's."""
    code = "import kernels; print(kernels.__file__)"
    where = run(installed.parents[2] / "bin/python", "-c", code, cwd=ROOT).strip()
    assert where == str(installed / "kernels/__init__.py")


@pytest.mark.slow
def test_wheel_trains(installed: Path, tmp_path: Path) -> None:
    program = installed.parents[2] / "bin/fastvae"
    run(program, "train", "digits", "--max-steps", "3", "--out", tmp_path / "runs", cwd=tmp_path)
    assert list((tmp_path / "runs").rglob("config.toml"))
    check_stand_in(installed)
