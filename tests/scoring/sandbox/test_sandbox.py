"""Programs that try to get out, to last, to hurt or to lie: none of them passes, and nothing of
them is left.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from recycler.errors import InfrastructureError, UnsafeInputError
from recycler.scoring.sandbox import box as box_module
from recycler.scoring.sandbox import parent, verdict
from recycler.scoring.sandbox.box import box_command, is_python_prefix
from recycler.scoring.sandbox.fence import seccomp_filter
from recycler.scoring.sandbox.parent import Sandbox
from recycler.scoring.sandbox.verdict import Limits, Program

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        subprocess.run(["which", "bwrap"], capture_output=True).returncode != 0,
        reason="bubblewrap is not installed (apt-get install bubblewrap)",
    ),
]

# Each passes only if the attempt succeeds. `{canary}` is a file, `{port}` a listening port and
# `{pid}` a process outside.
ESCAPES = {
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read /etc/shadow": "open('/etc/shadow').read()",
    "read a file outside": "open('{canary}').read()",
    "write a file outside": "open('{canary}', 'w').write('x')",
    "delete a file outside": "import os; os.unlink('{canary}')",
    "list /home": "import os; os.listdir('/home')",
    "list /root": "import os; os.listdir('/root')",
    "list /var": "import os; os.listdir('/var')",
    "write into /usr": "open('/usr/x', 'w')",
    "write into /usr/lib": "open('/usr/lib/python3/x.py', 'w')",
    "write into /": "open('/x', 'w')",
    "make a folder in /": "import os; os.mkdir('/newdir')",
    "chmod the interpreter": "import os, sys; os.chmod(sys.executable, 0o777)",
    "replace /lib": "import os; os.unlink('/lib')",
    "symlink to the outside": "import os; os.symlink('{canary}', '/tmp/l'); open('/tmp/l').read()",
    "symlink to / and "
    "up": "import os; os.symlink('/../../../..', '/tmp/l'); open('/tmp/l{canary}').read()",
    "dot-dot": "open('/tmp/../../../../..{canary}').read()",
    "hard link": "import os; os.link('{canary}', '/tmp/l')",
    "chroot": "import os; os.chroot('/tmp')",
    "pivot by "
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b'/', b'/tmp', None, 4096, None) == 0",
    "unmount": "import ctypes; assert ctypes.CDLL(None).umount2(b'/usr', 2) == 0",
    "remount "
    "writable": "import ctypes; assert ctypes.CDLL(None).mount(None, b'/usr', None, 32, None) == 0",
    "new user namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "new mount namespace": "import ctypes; assert ctypes.CDLL(None).unshare(0x00020000) == 0",
    "setuid 0": "import os; os.setuid(0)",
    "setuid binary": "import subprocess; assert subprocess.run(['/usr/bin/su', '-c', 'true'], "
    "capture_output=True).returncode == 0",
    "sudo": "import subprocess; assert subprocess.run(['/usr/bin/sudo', '-n', 'true']).returncode "
    "== "
    "0",
    "be root": "import os; assert os.getuid() == 0",
    "change the host name": "import socket; socket.sethostname('x')",
    "change the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "reboot": "import ctypes; assert ctypes.CDLL(None).reboot(0) == 0",
    "tcp to the outside": "import socket; socket.create_connection(('1.1.1.1', 53), 1)",
    "tcp to the host": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "udp": "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', "
    "('1.1.1.1', 53))",
    "name lookup": "import socket; socket.getaddrinfo('localhost.localdomain.example', 80)",
    "abstract unix "
    "socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0recycler-test-{pid}')",
    "raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "curl": "import subprocess; assert subprocess.run(['/usr/bin/curl', '-s', "
    "'http://127.0.0.1:{port}']).returncode == 0",
    "fork bomb": "import os\nwhile True: os.fork()",
    "thread "
    "bomb": "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, "
    "args=(30,), daemon=True).start()",
    "many processes": "import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        "
    "time.sleep(30); "
    "os._exit(0)",
    "memory": "x = bytearray(8 * 1024**3)",
    "memory by steps": "x = []\nwhile len(x) < 64: x.append(b'1' * 128 * 1024**2)",
    "large file": "f = open('/tmp/f', 'wb')\nfor _ in range(64): f.write(b'0' * 1024**2)",
    "full disk": "for i in range(64): open(f'/tmp/{{i}}', 'wb').write(b'0' * 1000**2)",
    "many open files": "x = [open('/dev/null') for _ in range(1000)]",
    "shared memory left behind": "open('/dev/shm/left', 'w').write('x'); open('{canary}')",
    "kill a process outside": "import os; os.kill({pid}, 9)",
    "signal the parent group": "import os; os.kill(-{pid}, 15)",
    "raise limits": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "nice": "import os; os.nice(-10)",
    "ptrace outside": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "process_vm_readv outside": "import ctypes; b = ctypes.create_string_buffer(8); assert "
    "ctypes.CDLL(None).process_vm_readv({pid}, b, 1, b, 1, 0) == 8",
    "/proc of the host": "open('/proc/1/environ').read()",
    "/proc/self/exe": "import os; os.readlink('/proc/self/exe')",
    "environment": "import os; assert os.environ.get('HOME') or os.environ.get('PATH')",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('b')",
    "block device": "import glob; assert glob.glob('/dev/vd*') + glob.glob('/dev/sd*') + "
    "glob.glob('/dev/nvidia*')",
    "mknod": "import os; os.mknod('/tmp/d', 0o60600, os.makedev(254, 0)); open('/tmp/d', "
    "'rb').read(1)",
    "kernel "
    "log": "import ctypes; assert ctypes.CDLL(None).klogctl(3, ctypes.create_string_buffer(64), "
    "64) "
    "> 0",
    "container sockets": "open('/var/run/docker.sock')",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 0, 0) >= 0",
}


@pytest.fixture(scope="module")
def box():
    box = Sandbox(workers=4, limits=Limits(wall_seconds=3, cpu_seconds=2))
    yield box
    box.close()


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file, a port and a process that the programs are after."""
    import socket

    canary = Path("/var/tmp") / f"recycler-canary-{os.getpid()}"
    canary.write_text("alive")
    canary.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    process = subprocess.Popen(["sleep", "300"])
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0recycler-test-{process.pid}")
    abstract.listen()
    yield (
        {"canary": str(canary), "port": listener.getsockname()[1], "pid": process.pid},
        canary,
        process,
    )
    process.kill()
    process.wait()
    listener.close()
    abstract.close()
    canary.unlink()


def test_escape_attempts_are_contained(box, outside):
    names, canary, process = outside
    started = time.monotonic()
    verdicts = dict(
        zip(
            ESCAPES,
            box.run_many([Program(text.format(**names)) for text in ESCAPES.values()]),
            strict=True,
        )
    )
    assert [name for name, verdict in verdicts.items() if verdict.passed] == []
    assert len(ESCAPES) >= 60
    assert canary.read_text() == "alive" and process.poll() is None
    assert not Path("/dev/shm/left").exists()
    assert time.monotonic() - started < 60


HOARDS = {  # each takes about 400 MB or more in its own way; the box below has 200 MB
    "children": "import os, time\nfor i in range(4):\n    if os.fork() == 0:\n        x = b'x' * "
    "(100 * "
    "2**20); time.sleep(2); os._exit(0)\ntime.sleep(2)",
    "children that leave their "
    "parent": "import os, time\nfor i in range(4):\n    if os.fork() == 0:\n        os.setsid()\n  "
    "    "
    "  if os.fork() == 0:\n            x = b'x' * (100 * 2**20); time.sleep(2)\n        "
    "os._exit(0)\ntime.sleep(2)",
    "one process": "x = bytearray(400 * 2**20)",
    "shared "
    "mapping": "import mmap, os, time\nfor i in range(4):\n    if os.fork() == 0:\n        m = "
    "mmap.mmap(-1, 100 * 2**20)\n        for k in range(0, len(m), 4096): m[k] = 1\n        "
    "time.sleep(2); os._exit(0)\ntime.sleep(2)",
    "files in /dev/shm": "for i in range(40): open(f'/dev/shm/{i}', 'wb').write(b'x' * 2**20)",
    "files in /tmp": "for i in range(40): open(f'/tmp/{i}', 'wb').write(b'x' * 2**20)",
    "files in /dev": "open('/dev/x', 'wb').write(b'x')",
    "System V "
    "segment": "import ctypes; assert ctypes.CDLL(None).shmget(0, ctypes.c_size_t(2**20), 0o1600) "
    ">= 0",
    "message queue": "import ctypes; assert ctypes.CDLL(None).msgget(0, 0o1600) >= 0",
    "memfd": "import os; os.write(os.memfd_create('a'), b'x')",
}


def test_the_memory_of_a_box_is_bounded_whichever_way_it_is_taken():
    small = Sandbox(workers=2, limits=Limits(wall_seconds=8, memory_bytes=200 * 2**20))
    verdicts = dict(
        zip(HOARDS, small.run_many([Program(text) for text in HOARDS.values()]), strict=True)
    )
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == dict.fromkeys(
        HOARDS, "failed"
    )
    assert small.run(
        Program(
            "import os\nx = b'x' * (80 * 2**20)\nfor i in range(5):\n    if os.fork() == 0:\n    "
            "    import time; time.sleep(0.3); os._exit(0)\nfor i in range(5): os.wait()"
        )
    ).passed, "pages that children share count once"
    small.close()


def test_the_filter_lets_nothing_through_that_it_names_and_all_else():
    """The program of the filter, run by hand: {(architecture, call): verdict}."""
    import struct

    def verdict(machine, arch, call):
        lines, at, held = list(struct.iter_unpack("=HBBI", seccomp_filter(machine))), 0, 0
        while True:
            code, yes, no, value = lines[at]
            at += 1
            if code == 0x06:
                return value
            held = {0: call, 4: arch}[value] if code == 0x20 else held
            if code != 0x20:
                at += yes if (held == value if code == 0x15 else held >= value) else no

    allow, refuse = 0x7FFF0000, 0x00050001
    refused = {call for call in range(600) if verdict("x86_64", 0xC000003E, call) == refuse}
    assert refused == {29, 68, 64, 319, 447, 425, 101, 310, 311, 248, 249, 250, 321, 323, 298}
    assert (
        verdict("x86_64", 0x40000003, 1) == refuse
        and verdict("x86_64", 0xC000003E, 0x40000001) == refuse
        and verdict("x86_64", 0xC000003E, 1) == allow
    )
    assert (
        verdict("aarch64", 0xC00000B7, 194) == refuse
        and verdict("aarch64", 0xC00000B7, 64) == allow
    )
    assert seccomp_filter("riscv64") == b""


@pytest.mark.parametrize("way", ["says why", "is killed"])
def test_a_box_that_no_longer_starts_is_no_verdict(way, tmp_path, monkeypatch):
    box, real = Sandbox(workers=1), box_command()
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/sh\necho 'bwrap: Creating new namespace failed: No space left on device' >&2\n"
        + ("exit 1" if way == "says why" else "kill -9 $$")
    )
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o755)
    fake.chmod(0o755)
    monkeypatch.setattr(verdict, "PAUSES", (0.0, 0.0))
    box._command = [str(fake), *real[1:]]
    with pytest.raises(InfrastructureError, match="No space left on device"):
        box.run(Program("", "assert 1 == 1"))
    box._command = real
    assert box.run(Program("", "assert 1 == 1")).passed, "nothing of it is remembered"
    box.close()


LASTING = {
    "sleep": "import time; time.sleep(60)",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\n    "
    "os._exit(0)\n"
    "os._exit(0)",
    "daemon of a right program": (
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\n    os._exit(0)"
    ),
    "ignored signals": (
        "import signal\nfor s in (15, 2, 1, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    ),
}


def test_nothing_is_left_running(box):
    outcomes = [
        verdict.outcome for verdict in box.run_many([Program(text) for text in LASTING.values()])
    ]
    assert outcomes[1:3] == ["failed", "passed"] and "passed" not in (outcomes[0], outcomes[3])
    deadline = time.monotonic() + 5
    while (left := _boxes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _boxes() -> list[str]:
    """Command lines of bwrap processes that are children of this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == os.getpid() and b"bwrap" in command:
            found.append(command.decode(errors="replace"))
    return found


def test_a_program_may_print_write_to_tmp_and_use_threads(box):
    program = (
        "import threading, sys\nprint('x' * 10**6)\nopen('/tmp/a', 'w').write('1')\nt = "
        "threading.Thread(target=lambda: None)\nt.start(); t.join()\nassert open('/tmp/a').read() "
        "== '1'"
    )
    assert box.run(Program(program)).passed


def test_verdicts_are_cached_by_program_but_timeouts_are_not(box):
    program = Program("x = 'cached'", "assert x")
    assert box.run(program).seconds > 0
    assert box.run(program).seconds == 0
    assert box.run(program._replace(tests="assert not x")).outcome == "failed"
    slow = Sandbox(workers=1, limits=Limits(wall_seconds=1.5))
    sleep = Program("import time; time.sleep(9)")
    assert [slow.run(sleep).outcome for _ in range(2)] == ["timeout", "timeout"]
    assert slow.run(sleep).seconds > 0
    slow.close()


def test_a_box_is_given_no_folder_that_only_happens_to_hold_an_interpreter(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python3").symlink_to("/bin/true")
    assert (
        not is_python_prefix(home)
        and not is_python_prefix(Path("/"))
        and is_python_prefix(Path("/usr"))
    )
    (home / "lib/python3.11").mkdir(parents=True)
    (home / "lib/python3.11/os.py").touch()
    assert is_python_prefix(home)


def test_without_bubblewrap_it_refuses_with_exit_code_4(monkeypatch):
    monkeypatch.setattr(box_module.shutil, "which", lambda name: None)
    with pytest.raises(UnsafeInputError, match="apt-get install bubblewrap") as error:
        Sandbox()
    assert error.value.exit_code == 4


def test_a_bubblewrap_that_does_not_start_is_refused(monkeypatch):
    monkeypatch.setattr(box_module.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(UnsafeInputError, match="user namespaces"):
        Sandbox()


def test_a_box_that_does_not_hold_is_refused(monkeypatch):
    """Without bwrap in the command the right program passes and so would the probe that looks
    outside: it must not.
    """
    plain = box_command()
    monkeypatch.setattr(parent, "box_command", lambda: plain[plain.index("-I") - 1 :])
    with pytest.raises(UnsafeInputError):
        Sandbox()
