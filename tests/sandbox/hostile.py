"""Programs that try to exhaust, to cheat, or to get out.

EXHAUST and CHEAT must never be judged correct. ESCAPE programs print "contained" if what they try
fails; that is what their test expects, so that a way out shows as a wrong verdict. MARK stands for
a word of the run, PARENT for the process id of the grader, PORT for a port it listens on, HOME for
its home directory.
"""

from __future__ import annotations

EXHAUST = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that goes on": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "thread bomb": """
import threading, time
threading.stack_size(32768)
while True:
    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except Exception: pass
""",
    "subprocess bomb": "import subprocess\nwhile True: subprocess.Popen(['/bin/sleep', '60'])",
    "multiprocessing": """
import multiprocessing, time
if __name__ == "__main__":
    p = multiprocessing.Process(target=time.sleep, args=(60,)); p.start(); p.join()
""",
    "endless output": "while True: print('a' * 1000)",
    "endless output without a line": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "endless errors": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "100 GB at once": "x = bytearray(100 << 30)\nprint(input())",
    "100 GB by and by": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "100 GB mapped": "import mmap\nx = mmap.mmap(-1, 100 << 30)\nprint(input())",
    "endless loop": "while True: pass",
    "deaf to signals": """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "endless sleep": "import time\ntime.sleep(10**6)",
    "endless wait for input": "import select, sys\nsys.stdin.read()\nselect.select([], [], [])",
    "full disk": """
import os
f = open("/tmp/x", "wb")
while True:
    f.write(b"x" * (1 << 20))
""",
    "many files": """
i = 0
while True:
    open(f"/tmp/{i}", "w").write("x" * 5000)
    i += 1
""",
    "sparse file": "open('/tmp/x', 'wb').truncate(1 << 42)\nprint(input())",
    "many descriptors": "import os\nwhile True: os.pipe()",
    "deep recursion": """
import sys
sys.setrecursionlimit(10**9)
def f(): return f() + 1
f()
""",
    "deep parser": "eval('(' * 10**5 + ')' * 10**5)",
    "huge power": "print(len(str(10 ** 10 ** 9)))",
    "slow expression": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "closed output": "import os\nos.close(1)\nwhile True: pass",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "grandchild that outlives": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(600)
    os._exit(0)
print(input())
""",
}

# What a test expects is a secret of the run; each of these defines f or prints without knowing it.
CHEAT = {
    "os._exit(0)": "import os\nos._exit(0)",
    "sys.exit in teardown": """
import atexit, os, sys
atexit.register(lambda: os._exit(0))
sys.exit(0)
""",
    "os._exit(0) in the call": "import os\ndef f(x): os._exit(0)",
    "SystemExit in the call": "import sys\ndef f(x): sys.exit(0)",
    "patched builtins": """
import builtins
builtins.isinstance = lambda *a: True
builtins.all = builtins.any = lambda *a: True
builtins.abs = lambda *a: 0
def f(x): return x
""",
    "equal to everything": """
class E(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return E("x")
""",
    "object equal to everything": """
class E:
    def __eq__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a): return True
def f(x): return E()
""",
    "walking frames": """
import sys
def f(x):
    found = []
    frame = sys._getframe()
    while frame:
        found += [str(v) for v in {**frame.f_locals, **frame.f_globals}.values()]
        frame = frame.f_back
    return max((w for t in found for w in t.replace("'", " ").split() if "secret" in w), default="")
""",
    "walking the heap": """
import gc
def f(x):
    words = [o for o in gc.get_objects() if isinstance(o, (list, tuple, dict))]
    found = [w for o in words for w in (o.values() if isinstance(o, dict) else o)
             if isinstance(w, str) and "secret-" in w and len(w) < 60]
    return found[0] if found else ""
""",
    "reading own memory": """
import ctypes, sys
def f(x):
    try: return open("/proc/self/mem", "rb").read(10).decode()
    except OSError: return open("/inside.py").read()[:10]
""",
    "forged replies": """
import os
def f(x):
    for fd in range(1, 64):
        try: os.write(fd, b'D"passed"\\n')
        except OSError: pass
    return ""
""",
    "patched harness": """
import json, sys
json.dumps = lambda *a, **k: 'D"passed"'
main = sys.modules["__main__"]
for name in ("answer", "encode", "decode"):
    setattr(main, name, lambda *a, **k: {"value": True, "args": [True]})
def f(x): return ""
""",
    "raises what a test raises": "def f(x): raise AssertionError",
    "prints the input": "print(input())",
    "endless reply": "def f(x): return 'x' * (1 << 28)",
}

_TRY = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
out = []
def attempt(function, *args):
    try: result = function(*args)
    except BaseException: return
    if result not in (None, -1): out.append(result)
    elif result is None: out.append(function)
BODY
print("contained" if not out else f"escaped: {out}")
"""
ESCAPE = {
    name: _TRY.replace("BODY", body)
    for name, body in {
        "environment": "out += list(os.environ)\nattempt(open, '/proc/self/environ')",
        "home": "attempt(os.listdir, 'HOME/.ssh')\n"
        "attempt(open, 'HOME/.bashrc')\nattempt(open, 'HOME/MARK')\n"
        "attempt(open, '/root/.bashrc')\nattempt(open, '/etc/passwd')",
        "parent's /proc": "for n in ('environ', 'cmdline', 'mem', 'root', 'cwd'):\n"
        "    attempt(os.stat, f'/proc/PARENT/{n}')\n    attempt(os.stat, f'/proc/1/{n}')",
        "socket to the host": "attempt(socket.create_connection, ('127.0.0.1', PORT), 1)",
        "listening socket": "attempt(lambda: socket.create_server(('', 0)))",
        "abstract socket": "attempt(lambda: socket.socket(socket.AF_UNIX).bind('\\0MARK'))",
        "name server": "attempt(socket.getaddrinfo, 'localhost', 80, 0, socket.SOCK_STREAM)\n"
        "out = [o for o in out if not isinstance(o, list)]\n"
        "attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))",
        "killing the parent": "attempt(os.kill, PARENT, 9)\nattempt(os.killpg, PARENT, 9)",
        "killing everybody": "attempt(os.kill, -1, 9)",
        "writing outside": "for d in ('/', '/usr', '/usr/lib', '/dev', '/lib', 'HOME', '/etc',\n"
        "          '/dev/shm', '/var/tmp', sys.prefix):\n"
        "    attempt(open, d + '/MARK', 'w')\nattempt(open, '/inside.py', 'a')",
        "symlink to the outside": "places = ('/etc', 'HOME', '/proc/1/root', '/dev')\n"
        "for i, d in enumerate(places):\n"
        "    os.symlink(d, f'/tmp/l{i}')\n    attempt(open, f'/tmp/l{i}/MARK', 'w')\n"
        "os.symlink('../' * 30 + 'etc/passwd', '/tmp/p')\nattempt(open, '/tmp/p')",
        "setuid": "attempt(os.setuid, 0)\nattempt(os.setresuid, 0, 0, 0)\nattempt(os.setgid, 0)\n"
        "os.close(os.open('/tmp/s', os.O_CREAT))\n"
        "attempt(os.chown, '/tmp/s', 0, 0)",
        "setuid program": "import subprocess\nattempt(subprocess.run, ['/usr/bin/su', '-c', 'id'])",
        "ptrace": "attempt(libc.ptrace, 16, PARENT, 0, 0)\nattempt(libc.ptrace, 16, 1, 0, 0)",
        "process memory": "buffer = ctypes.create_string_buffer(64)\n"
        "attempt(libc.process_vm_readv, PARENT, buffer, 1, buffer, 1, 0)",
        "namespaces": "attempt(libc.unshare, 0x10000000)\nattempt(libc.unshare, 0x20000)\n"
        "attempt(libc.setns, 0, 0)",
        "mount": "attempt(libc.mount, b'none', b'/tmp', b'tmpfs', 0, 0)\n"
        "attempt(libc.umount2, b'/tmp', 2)\nattempt(libc.mount, 0, b'/', 0, 32, 0)",
        "chroot": "os.mkdir('/tmp/c')\nattempt(os.chroot, '/tmp/c')\n"
        "attempt(libc.pivot_root, b'/tmp/c', b'/tmp/c')",
        "devices": "for d in ('/dev/mem', '/dev/kmem', '/dev/sda', '/dev/vda', '/dev/tty',\n"
        "          '/dev/fuse', '/dev/kvm', '/dev/nvidia0'):\n    attempt(open, d, 'rb')\n"
        "attempt(os.mknod, '/tmp/d', 0o60600, 1 << 8)",
        "kernel": "attempt(libc.syscall, 321, 0, 0, 0)\n"
        "attempt(libc.syscall, 298, 0, 0, -1, -1, 0)\n"
        "attempt(libc.syscall, 250, 0, -3)\nattempt(libc.syscall, 425, 8, 0)\n"
        "attempt(libc.syscall, 323, 0)\nattempt(libc.syscall, 435, 0, 0)",
        "memory without a limit": "attempt(os.memfd_create, 'MARK')\n"
        "attempt(libc.shmget, 0, 1 << 30, 0o1600)",
        "attributes that take memory": "os.close(os.open('/tmp/a', os.O_CREAT | os.O_RDWR))\n"
        "for name in ('user.a', 'trusted.a'):\n"
        "    attempt(os.setxattr, '/tmp/a', name, b'x' * 60000)\n"
        "    attempt(lambda: os.setxattr('/tmp', name, b'x', follow_symlinks=False))\n"
        "with open('/tmp/a', 'wb') as f:\n    attempt(os.setxattr, f.fileno(), 'user.b', b'x')",
        # The machine's own nodes: what they are set to here is what they have.
        "modes of the machine's devices": "for d in ('null', 'zero', 'full', 'urandom'):\n"
        "    attempt(os.chmod, f'/dev/{d}', 0o666)\n"
        "    attempt(libc.syscall, 452, -100, f'/dev/{d}'.encode(), 0o666, 0)\n"
        "attempt(os.fchmod, 2, 0o666)",
        "owners of the machine's devices": "attempt(os.chown, '/dev/null', 65534, 65534)\n"
        "attempt(os.lchown, '/dev/null', 65534, -1)\nattempt(os.fchown, 2, 65534, 65534)",
        "times of the machine's devices": "attempt(os.utime, '/dev/null')\n"
        "attempt(os.utime, 2)\nattempt(libc.utimes, b'/dev/null', 0)",
        "watching the machine's files": "attempt(libc.inotify_init)\n"
        "attempt(libc.inotify_init1, 0)\nattempt(libc.fanotify_init, 0x200, 0)",
        "descriptors in flight": "a, b = socket.socketpair()\n"
        "attempt(socket.send_fds, a, [b'x'], [0])\n"
        "attempt(a.setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)",
        "raising limits": "import resource\n"
        "attempt(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))\n"
        "attempt(resource.setrlimit, resource.RLIMIT_FSIZE, (-1, -1))",
        "host name": "attempt(socket.sethostname, 'MARK')",
        "foreign descriptors": "for fd in range(3, 64):\n    attempt(os.fstat, fd)",
    }.items()
}  # fmt: skip

BOMBS = [
    r"5^{5^{5^{5^{5}}}}",
    r"1000000000!",
    r"(x+1)^{100000}",
    r"10^{10^{10}}",
    r"\prod_{k=1}^{1000000000} k",
    r"\sum_{k=1}^{1000000} \frac{1}{k^{3}+\sqrt{k}}",
    r"\binom{1000000000}{500000000}",
    r"(((2^{99999})^{99999})^{99999})",
    "(" * 1500 + "1" + ")" * 1500,
    r"(x+y+z+1)^{300} \cdot (x-y-z-1)^{300}",
]
