"""Try the oldest or the newest versions that settings.ini allows.

    python scripts/try_versions.py oldest
    python scripts/try_versions.py newest

A fresh virtual environment gets the library with its extras llm and lora: every requirement at its
lower bound, or whatever pip takes. A few tests and a training of two steps run there, on the CPU.
The last line is a row for docs/versions.md; the environment is removed.

pip takes PyTorch's CUDA build (3 GB to download, 8 GB on disk) unless its own settings offer it a
CPU build. The environment lies in TMPDIR.
"""

import os
import re
import subprocess
import sys
import venv
from configparser import ConfigParser
from datetime import date
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("llm", "lora")
TESTS = (
    "step rollout train two_processes pairing load encoder_cache language_model "
    "cli cli_errors jobs report"
).split()
TRAIN = "-m pairuni_nb.cli train --steps 2 --eval-items 8 --device cpu --out run".split()


def lower_bounds() -> dict:  # package -> version
    "What settings.ini asks for at least."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    found = {}
    for key in ("requirements", *(f"{extra}_requirements" for extra in EXTRAS)):
        for requirement in parser["DEFAULT"][key].split():
            name, version = requirement.split(">=")
            found[name] = version
    return found


def versions(python: Path) -> str:
    "What the environment holds of the packages that settings.ini names."
    words = [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    said = subprocess.run(words, capture_output=True, text=True).stdout
    held = {}
    for name, version in re.findall(r"(\S+)==(\S+)", said):
        held[name.lower().replace("_", "-")] = version
    return ", ".join(f"{name} {held[name]}" for name in lower_bounds() if name in held)


def attempt(which: str, folder: Path) -> tuple:  # verdict, versions
    "Install, test and train in a fresh environment."
    venv.create(folder / "venv", with_pip=True)
    python, pins = folder / "venv" / "bin" / "python", folder / "pins.txt"
    bounds = lower_bounds().items() if which == "oldest" else ()
    pins.write_text("".join(f"{name}=={version}\n" for name, version in bounds))
    library = f"{ROOT}[{','.join(EXTRAS)}]"
    steps = {
        "pip install": ["-m", "pip", "install", "--progress-bar=off", "-c", pins],
        "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="],
        "pairuni train": TRAIN,
    }
    steps["pip install"] += ["-e", library, "pytest", "hypothesis"]
    steps["pytest"] += [f"{ROOT}/tests/test_{name}.py" for name in TESTS]
    env = os.environ | dict(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    env.pop("PYTHONPATH", None)
    for name, words in steps.items():
        if subprocess.run([python, *words], cwd=folder, env=env).returncode:
            return f"{name} fails", versions(python)
    return "works", versions(python)


def main(which: str) -> int:
    "Print what came of it; the exit code is 0 where it works."
    with TemporaryDirectory() as folder:
        verdict, held = attempt(which, Path(folder))
    print(f"| {date.today()} | {which} | {verdict} | Python {python_version()}, {held} |")
    return verdict != "works"


if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]):
        sys.exit("say what to try: oldest or newest")
    sys.exit(main(sys.argv[1]))
