"""Wheel and sdist have the right files and metadata, and the wheel works without the source tree."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from readme_renderer import markdown

import crossmodal_attn

ROOT = Path(__file__).parents[1]
VERSION = crossmodal_attn.__version__
NAME = f"crossmodal_attn-{VERSION}"
PAPER = "https://doi.org/10.1145/3394171.3413581"
REPOSITORY = "https://example.org/someone/crossmodal-attn"
CHECKERS = {
    "mypy.ini": """
[mypy]
files = typed_user.py
strict = true
python_executable = {python}
# Of torch only what such a file names: to read the whole takes five times as long.
[mypy-torch.*]
follow_imports = skip
[mypy-torch,torch._C.*,torch._tensor,torch.nn.*]
follow_imports = normal
""",
    "pyrightconfig.json": '{{"include": ["typed_user.py"], "venvPath": ".", "venv": "venv"}}',
}
"""The configuration of a user's type checkers."""
FILES = {
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "conftest.py",
    "constraints.txt",
    "hatch_build.py",
    "pyproject.toml",
}
DIRECTORIES = {".github", "benchmarks", "docs", "examples", "src", "tests"}
GENERATED = ["__pycache__", "_build", "guides"]
LEFT_OVERS = [
    ".mypy_cache/3.12/cache.db",
    ".venv/bin/python",
    "build/lib/crossmodal_attn/cmra.py",
    "dist/crossmodal_attn-0.0.1.tar.gz",
    "docs/_build/html/index.html",
    "docs/gallery/quickstart.py",  # which conf.py copies there
    "docs/guides/quickstart.rst",
    "examples/__pycache__/ave_cmran.cpython-312.pyc",
    "notes.txt",
    "runs/demo/seed-0/model/model.safetensors",
    "src/crossmodal_attn.egg-info/PKG-INFO",
]
"""Files that work in a clone creates. A distribution must not contain them."""


def run(*command, cwd, **environment):
    """Run a command with nothing of this project on its path, and return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "REPOSITORY_URL"}}
    inherited["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # else it asks the network for a newer pyright
    result = subprocess.run(  # noqa: S603
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a copy of the project, with the files that builds and runs leave behind."""
    directory = tmp_path_factory.mktemp("project")
    for name in FILES:
        shutil.copy(ROOT / name, directory)
    for name in DIRECTORIES:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(*GENERATED))
    for name in LEFT_OVERS:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


@pytest.fixture(scope="module")
def built(project, tmp_path_factory):
    """Return a directory with the sdist and the wheel that is built from it, as for a release."""
    directory = tmp_path_factory.mktemp("dist")
    command = ["-m", "build", "--no-isolation", "--outdir", directory, project]
    run(sys.executable, *command, cwd=directory, REPOSITORY_URL=REPOSITORY)
    return directory


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as file:
        yield file


@pytest.fixture(scope="module")
def metadata(wheel):
    return message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


@pytest.fixture
def installed(wheel, tmp_path):
    """Return a Python with the wheel installed, which uses the requirements of the tests' environment."""
    venv.create(tmp_path / "venv", symlinks=os.name != "nt")
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    wheel.extractall(site)  # noqa: S202
    borrowed = {str(distribution(name).locate_file("")) for name in ("einops", "torch", "typing-extensions")}
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")  # .pth files in there stay unread
    return python, site


def test_wheel_holds_the_package_only(wheel):
    """The wheel contains modules, ``py.typed``, license and metadata, and no tests, examples, caches or duplicates."""
    package = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/crossmodal_attn").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {"crossmodal_attn/__init__.py", "crossmodal_attn/cmra.py", "crossmodal_attn/py.typed"} <= package
    described = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert sorted(wheel.namelist()) == sorted(package | described)


def test_sdist_holds_the_project_only(built, project):
    """The sdist contains sources, tests, docs and build files, and nothing generated or large."""
    with tarfile.open(built / f"{NAME}.tar.gz") as file:
        members = {member.name.removeprefix(f"{NAME}/"): member for member in file.getmembers() if member.isfile()}
    sources = {
        path.relative_to(project).as_posix()
        for directory in DIRECTORIES
        for path in (project / directory).rglob("*")
        if path.is_file()
    }
    assert members.keys() == FILES | sources - set(LEFT_OVERS) | {"PKG-INFO"}
    kinds = {Path(name).suffix for name in members if name.startswith(("src/", "examples/"))}
    assert kinds == {".md", ".py", ".typed"}
    assert all(member.size < 2**20 for member in members.values())


def test_metadata_is_whole(metadata):
    """The license is an SPDX expression, without a license classifier, which PyPI would refuse."""
    classifiers = metadata.get_all("Classifier")
    assert metadata["Name"] == "crossmodal-attn"
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.14"} <= set(classifiers)
    assert not [classifier for classifier in classifiers if classifier.startswith("License ::")]


def test_requirements_stand_in_extras(metadata):
    """All requirements except three belong to an extra, and no extra is empty."""
    requirements = metadata.get_all("Requires-Dist")
    needed = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements if "extra ==" not in requirement}
    assert needed == {"einops", "torch", "typing-extensions"}
    extras = {extra[1] for requirement in requirements if (extra := re.search(r"extra == '(.+?)'", requirement))}
    assert extras == set(metadata.get_all("Provides-Extra"))
    assert {"examples", "plots", "onnx", "docs", "dev"} <= extras


def test_release_names_its_repository(metadata):
    """If the build knows the repository, the metadata links to it, and the README to its files at the tag."""
    assert dict(url.split(", ") for url in metadata.get_all("Project-URL")) == {
        "Paper": PAPER,
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md",
    }
    before = links((ROOT / "README.md").read_text(encoding="utf-8"))
    after = links(metadata.get_payload())
    assert any(link.endswith(".png") for link in before)
    assert "CITATION.cff" in before
    assert after == [
        link
        if link.startswith(("https://", "#"))
        else f"{REPOSITORY}/{'raw' if link.endswith('.png') else 'blob'}/v{VERSION}/{link}"
        for link in before
    ]


def test_build_that_is_told_no_repository_names_none(tmp_path):
    """Without a repository, the README is unchanged, and the only link is the paper."""
    build = "import sys; from hatchling.build import prepare_metadata_for_build_wheel as prepare; prepare(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=ROOT)
    metadata = message_from_bytes((tmp_path / f"{NAME}.dist-info/METADATA").read_bytes())
    assert metadata.get_all("Project-URL") == [f"Paper, {PAPER}"]
    assert body(metadata) == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_readme_renders(metadata):
    """PyPI renders headings, tables, code, pictures and links of the README."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    rendered = markdown.render(body(metadata))
    for element in ("<h1", "<h2", "<table", "<pre", f'src="{REPOSITORY}/raw/v{VERSION}/docs/images/'):
        assert element in rendered
    assert "](" not in re.sub(r"<(pre|code)\b.*?</\1>", "", rendered, flags=re.DOTALL)


def test_twine_accepts_both(built):
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)
    assert checked.count("PASSED") == 2


def test_wheel_is_enough(installed, tmp_path):
    """Without the source tree, every module comes from the wheel, and the examples of the README run."""
    python, site = installed
    shutil.copy(ROOT / "README.md", tmp_path)
    script = """
import doctest, importlib, pkgutil
import crossmodal_attn
for module in pkgutil.iter_modules(crossmodal_attn.__path__, "crossmodal_attn."):
    print(importlib.import_module(module.name).__file__)
assert doctest.testfile("README.md", module_relative=False).failed == 0
"""
    origins = {Path(line) for line in run(python, "-c", script, cwd=tmp_path).splitlines()}
    assert origins == set(site.glob("crossmodal_attn/*.py")) - {site / "crossmodal_attn/__init__.py"}


def test_types_reach_a_user(installed, tmp_path):
    """mypy and pyright find the types of the installed wheel."""
    python, site = installed
    shutil.copy(ROOT / "tests/typed_user.py", tmp_path)
    for name, text in CHECKERS.items():
        (tmp_path / name).write_text(text.format(python=python), encoding="utf-8")
    for checker in ("mypy", "pyright"):
        run(sys.executable, "-m", checker, cwd=tmp_path)
    (site / "crossmodal_attn/py.typed").unlink()
    with pytest.raises(AssertionError, match="import-untyped"):
        run(sys.executable, "-m", "mypy", cwd=tmp_path)


def links(text):
    """Return the targets of the links and pictures of a Markdown text, in order."""
    return re.findall(r"\]\(([^()\s]+)\)", text)


def body(metadata):
    return metadata.get_payload(decode=True).decode().strip()
