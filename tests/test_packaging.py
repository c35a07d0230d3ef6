"""What is installed is enough, and no more than is needed: distributions, requirements, extras."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pairuni_nb"

# A process without what only an extra brings: whoever looks for these packages finds nothing.
WITHOUT = """
import sys

MISSING = "openai ipywidgets IPython jupyter jupyter_core nbdev fastcore peft playwright".split()


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in MISSING:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def without_extras(program, folder):
    "What a program says in such a process."
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    words = [sys.executable, "-c", WITHOUT + program]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def settings():
    "settings.ini, as setup.py reads it."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_every_module_imports_without_the_extras(tmp_path):
    names = sorted(path.stem for path in PACKAGE.glob("*.py"))
    program = f"""
from importlib import import_module
for name in {names}:
    try:
        import_module("pairuni_nb." + name)
    except ImportError as e:
        print(name, e)
"""
    told = "explorer the sliders need ipywidgets: pip install 'pairuni_nb[notebooks]'\n"
    assert without_extras(program, tmp_path) == told


@pytest.mark.parametrize(
    "words, told",
    [
        ("--help", "train"),
        ("train --help", "--lora-rank"),
        ("train --lora-rank 8", "pip install 'pairuni_nb[lora]'"),
        (
            "pair --out x --complete llm --base-url http://localhost:1/v1",
            "pip install 'pairuni_nb[llm]'",
        ),
    ],
)
def test_commands_without_the_extras(words, told, tmp_path):
    program = f"from pairuni_nb.cli import main; main({words.split()})"
    said = without_extras(program, tmp_path)
    assert told in said and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())


def test_requirements_have_lower_bounds():
    for key in ("requirements", "notebooks_requirements", "llm_requirements", "lora_requirements"):
        for requirement in settings()[key].split():
            assert re.fullmatch(r"[a-z0-9-]+>=[\d.]+", requirement), requirement


def test_constraints_pin_what_the_requirements_ask_for():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    for key, requirements in settings().items():
        if not key.endswith("requirements") or key == "lmms_requirements":
            continue
        for requirement in map(Requirement, requirements.split()):
            name = requirement.name.lower().replace("_", "-")
            if name != "pairuni-nb":
                assert pins[name] in requirement.specifier, requirement


def test_the_version_is_told_in_one_line():
    words = [sys.executable, "-m", "pairuni_nb.cli", "--version"]
    said = subprocess.run(words, capture_output=True, text=True, cwd=ROOT).stdout
    version = settings()["version"]
    assert re.fullmatch(rf"pairuni_nb {version} \(torch \S+, transformers \S+\)\n", said)


@pytest.mark.parametrize(
    "words",
    [
        "plan --preset janus-pro-1b",
        "plan --card 3060",
        "evaluate --checkpoint nowhere",
        "sample draw x --checkpoint nowhere",
        "train --model nowhere",
        "train --resume nowhere",
        "report nowhere",
        "train --out used",
        "train --lr -1",
        "train --stepz 3",
        "--version",
    ],
)
def test_no_torch_for_an_answer_that_needs_none(words, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").touch()
    program = f"import sys; from pairuni_nb.cli import main; main({words.split()}); "
    program += "print('torch' in sys.modules, 'datasets' in sys.modules)"
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env
    ).stdout
    assert said.splitlines()[-1] == "False False", said


@pytest.fixture(scope="module")
def built(tmp_path_factory, need):
    "An sdist and a wheel of the package, built elsewhere, so that no build/ is left here."
    need("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    shutil.copytree(PACKAGE, source / "pairuni_nb")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_distributions_hold_what_they_need(built):
    files = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert files <= set(zipfile.ZipFile(wheel).namelist())
    held = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert files | {"settings.ini", "setup.py", "README.md", "LICENSE", "NOTICE"} <= held


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.tar.gz", "*.whl"])
def test_a_distribution_installs_and_trains(kind, built, tmp_path):
    [dist] = built.glob(kind)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, dist], check=True, cwd=tmp_path)
    train = "train --steps 2 --eval-items 8 --device cpu --out run".split()
    env = os.environ | dict(PYTHONPATH=str(site))
    words = [sys.executable, "-m", "pairuni_nb.cli", *train]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
