"""Isolation by bubblewrap: the command that starts a sandbox, and the proof that it holds here."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scope_megatron.data.code_tests import SANDBOX_PACKAGES
from scope_megatron.rollout.verify.sandbox.seccomp import filter_program

INSIDE = Path(__file__).with_name("inside.py")
INSIDE_PACKAGES = "/packages"
PROBE_S = 20.0
_RELEASE = re.compile(r"(\d+)\.(\d+)")
FIX = (
    "install bubblewrap (Debian: apt-get install bubblewrap) where user namespaces are allowed, or "
    "set verifier.code.run_without_isolation=true to run programs that a model wrote unprotected"
)


class NoIsolation(ValueError):
    """Programs cannot be isolated on this machine, so none is run."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program: time, memory, disk, output, processes."""

    timeout_s: float = 10.0
    memory_bytes: int = 1 << 30  # address space
    disk_bytes: int = 64 << 20  # of its tmpfs, and of any file
    output_bytes: int = 8 << 20
    processes: int = 64  # new processes are denied altogether; threads count where root is not host
    open_files: int = 64

    def rlimits(self, isolated: bool = True) -> dict[str, int]:
        """By the names of the module ``resource``. The processor limit only has to hold where the
        clock does not: it leaves room for the start, and for a second thread."""
        limits = {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": math.ceil(self.timeout_s) + 2,
            "RLIMIT_FSIZE": self.disk_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }
        # Outside a user namespace, and in one before Linux 5.14, it counts everything this user
        # runs on the machine: a program could start no thread for reasons that are not its own.
        if isolated and _linux_version() >= (5, 14):
            limits["RLIMIT_NPROC"] = self.processes
        return limits


def _linux_version() -> tuple[int, int]:
    numbers = _RELEASE.match(os.uname().release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


@functools.cache
def package_folders() -> list[Path]:
    """What programs may import besides the standard library, as judges of contests have it."""
    found = []
    for name in SANDBOX_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            found += [folder, folder.with_name(f"{name}.libs")]
    return [folder for folder in found if folder.is_dir()]


def python_command(limits: Limits, inside: str, isolated: bool) -> list[str]:
    """The interpreter with nothing of this installation but its standard library."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [
        python,
        "-I",
        "-S",
        "-B",
        "-X",
        "utf8",
        inside,
        json.dumps(limits.rlimits(isolated)),
        INSIDE_PACKAGES,
    ]


def isolated_command(limits: Limits, seccomp_fd: int, info_fd: int) -> list[str]:
    """A sandbox of read-only system libraries, an interpreter, numpy if it is here, a small /tmp.

    No network, no /proc, no device but null, zero, full and the random ones, no user but its own.
    """
    command = [_bwrap(), "--seccomp", str(seccomp_fd), "--info-fd", str(info_fd)]
    command += ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--uid", "65534", "--gid", "65534"]
    command += ["--cap-drop", "ALL", "--new-session", "--die-with-parent", "--clearenv"]
    command += ["--hostname", "sandbox"]
    for name in ("/usr", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.exists(name):
            command += ["--ro-bind", name, name]
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    for prefix in sorted({sys.base_prefix, os.path.realpath(sys.base_prefix)}):
        if not prefix.startswith("/usr/") and prefix != "/usr":
            command += ["--ro-bind", prefix, prefix]
    if not python.startswith(("/usr/", os.path.realpath(sys.base_prefix) + "/")):
        command += ["--ro-bind", python, python]
    for device in ("null", "zero", "full", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--ro-bind", str(INSIDE), "/inside.py"]
    for folder in package_folders():
        command += ["--ro-bind", str(folder), f"{INSIDE_PACKAGES}/{folder.name}"]
    command += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    command += ["--remount-ro", "/"]
    return command + python_command(limits, "/inside.py", isolated=True)


def _bwrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise NoIsolation(f"verifier.code: bubblewrap (bwrap) is not installed; {FIX}")
    return found


_PROBE = """
import ctypes, os, socket, sys
wrong = []
canary, parent, listening = CANARY
if os.path.exists(canary): wrong.append("it sees files of this machine")
if os.getuid() != 65534 or os.getppid() not in (0, 1): wrong.append("it is not in namespaces")
if os.path.exists("/proc/self"): wrong.append("it sees /proc")
if os.environ: wrong.append("it has an environment")
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(21, 0, 0, 0, 0) != 2: wrong.append("no filter of system calls")
if libc.prctl(39, 0, 0, 0, 0) != 1: wrong.append("it may gain privileges")
try:
    if os.fork() == 0: os._exit(0)
    wrong.append("it can start processes")
except OSError: pass
try:
    socket.socket()
    wrong.append("it can open sockets")
except OSError: pass
try:
    os.kill(parent, 0)
    wrong.append("it can signal processes of this machine")
except OSError: pass
if os.listdir("/tmp"): wrong.append("its /tmp is not its own")
try:
    names = {name for _, name in socket.if_nameindex()}
    if names - {"lo"}: wrong.append("it has a network")
except OSError: pass
for where in ("/", "/usr", "/dev"):
    try:
        open(where + "/written", "w").close()
        wrong.append("it can write to " + where)
    except OSError: pass
print("isolated" if not wrong else "; ".join(wrong))
"""


@functools.cache
def require_isolation() -> None:
    """Run a program that tries to get out, once. Raises NoIsolation unless every way is shut."""
    from scope_megatron.rollout.verify.sandbox.pool import framed

    with tempfile.NamedTemporaryFile() as canary, socket.socket() as listening:
        known = repr((canary.name, os.getpid(), listening.fileno()))
        source = _PROBE.replace("CANARY", known)
        filter_fd, writer = os.pipe()
        info, info_writer = os.pipe()
        try:
            os.write(writer, filter_program())
            os.close(writer)
            done = subprocess.run(
                isolated_command(Limits(), filter_fd, info_writer),
                input=framed({"mode": "script", "source": source}),
                capture_output=True,
                pass_fds=(filter_fd, info_writer),
                timeout=PROBE_S,
                env={},
            )
        except (OSError, subprocess.SubprocessError, NotImplementedError) as error:
            raise NoIsolation(f"verifier.code: no isolation here ({error}); {FIX}") from None
        finally:
            for fd in (filter_fd, info, info_writer):
                os.close(fd)
    said = done.stdout.decode("utf-8", "replace").removeprefix("R").strip()
    if said != "isolated":
        errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said or (errors[-1] if errors else f"bwrap ended with {done.returncode}")
        raise NoIsolation(f"verifier.code: no isolation here ({reason}); {FIX}")
