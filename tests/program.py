"""`pairuni` as a shell calls it, and processes of their own that import nothing a second time."""

import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from pairuni_nb.cli import main

CLI = "import sys; from pairuni_nb.cli import main; sys.exit(main())"


def pairuni(line):
    "The exit code of a command line."
    return main(shlex.split(line))


# Torch and transformers take a fresh interpreter 5 seconds. One server imports them, a session
# long, and each process is forked from it: before any thread, any model and any seed.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["pairuni_nb.ablate", "pairuni_nb.benchmark", "pairuni_nb.preference"])


def run_here(code, argv, cwd, env, files):
    "In the new process: become what `python -c code argv` would be."
    for file, number in zip(files, (1, 2)):
        os.dup2(os.open(file, os.O_WRONLY), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    sys.argv = ["-c", *argv]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


class Python:
    "A running `python -c code argv`: what it says, and how it ends."

    def __init__(self, code, *argv, cwd="."):
        self.files = [tempfile.NamedTemporaryFile() for _ in range(2)]
        names = [file.name for file in self.files]
        given = code, [str(word) for word in argv], str(Path(cwd).resolve())
        self.process = FORK.Process(target=run_here, args=(*given, dict(os.environ), names))
        self.process.start()

    def said(self):
        "Standard output and standard error so far."
        return [Path(file.name).read_text() for file in self.files]

    def poll(self):
        "The exit code; None while it runs."
        return self.process.exitcode

    def send(self, number):
        "A signal."
        os.kill(self.process.pid, number)

    def wait(self, seconds=300):
        "The exit code, minus the number of the signal that killed it."
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"no end after {seconds} s: {self.said()}")
        return self.process.exitcode
