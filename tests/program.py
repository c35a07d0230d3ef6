"""`pairuni` as a shell calls it, and processes of their own that import nothing a second time."""

import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

from ipykernel.kernelapp import IPKernelApp
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import write_connection_file
from matplotlib import rcParams

from pairuni_nb.cli import main

CLI = "import sys; from pairuni_nb.cli import main; sys.exit(main())"


def pairuni(line):
    "The exit code of a command line."
    return main(shlex.split(line))


# Torch and transformers take a fresh interpreter 5 seconds. One server imports them, a session
# long, and each process is forked from it: before any thread, any model and any seed.
FORK = multiprocessing.get_context("forkserver")
PARTS = ("ablate", "benchmark", "preference", "explorer", "encoders")
OTHERS = ("ipykernel.kernelapp", "matplotlib.pyplot", "nbclient", "pytest")
FORK.set_forkserver_preload([*(f"pairuni_nb.{part}" for part in PARTS), *OTHERS])


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

    def until(self, holds):
        "Wait for something that it brings about; an end before that is an error."
        while not holds():
            assert self.poll() is None, self.said()
            time.sleep(0.02)

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


CALLER = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]) + chr(10)
socket.send_fds(server, [words.encode()], [0, 1, 2])
sys.exit(int(server.recv(9) or 1))
"""


@contextmanager
def interpreter(folder):
    "The path of a program that is `python` to the scripts that start it, but has imported already."
    place, program = str(folder / "calls"), folder / "python"
    program.write_text(CALLER.format(python=sys.executable, place=place))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        process = FORK.Process(target=serve, args=(server,))
        process.start()
    # it has the socket now and nobody else: if it dies, calls are refused instead of waiting
    try:
        yield program
    finally:
        process.terminate()
        process.join()


def serve(server):
    "In the new process: one more for each call, and one that waits for it."
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        call, _ = server.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            words, files, *_ = socket.recv_fds(call, 2**16, 3)
            while not words.endswith(b"\n"):
                words += call.recv(2**16)
            made = os.fork()
            if not made:
                os._exit(be_python(*json.loads(words), files))
            while not (ended := os.waitpid(made, os.WNOHANG))[0]:
                if select.select([call], [], [], 0.05)[0]:  # who called is gone
                    os.kill(made, signal.SIGKILL)
            with suppress(BrokenPipeError):
                call.sendall(str(os.waitstatus_to_exitcode(ended[1]) % 256).encode())
            os._exit(0)
        call.close()


def be_python(argv, cwd, env, files):
    "In the new process: what `python argv` would do, and its exit code."
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdin = open(0, closefd=False)
    what, *sys.argv = argv[1:] if argv[0] == "-m" else argv
    own = str(Path(what).parent.resolve()) if what.endswith(".py") else cwd
    sys.path[:0] = [own, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv.insert(0, what)
    try:
        if argv[0] == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif what == "-":
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(what, run_name="__main__")
        code = 0
    except SystemExit as e:
        code = e.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def be_kernel(file, cwd, env):
    "In the new process: become what `python -m ipykernel_launcher -f file` would be."
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # Jupyter's, before an import
    IPKernelApp.launch_instance(argv=["-f", file, "--quiet"])


class Kernel(AsyncKernelManager):
    "A kernel that has imported the libraries and nothing else, for `NotebookClient`."

    has_kernel = True  # the client need not start one

    def __init__(self, cwd):
        super().__init__(owns_kernel=False)
        self.folder = tempfile.TemporaryDirectory()
        file, _ = write_connection_file(os.path.join(self.folder.name, "kernel.json"))
        self.load_connection_file(file)
        self.process = FORK.Process(target=be_kernel, args=(file, str(cwd), dict(os.environ)))
        self.process.start()

    async def is_alive(self):
        "A kernel that died is an error at once, not when its time is up."
        return self.process.is_alive()
