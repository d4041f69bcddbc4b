"""Two fences of the box that bubblewrap lacks: refused system calls, and a limit on its memory.

RLIMIT_AS binds one process; thirty-two of them, System V segments or memfds could take many times
as much. So calls that hold memory which no process's size shows are refused by a seccomp filter,
and the parent adds up what the box's processes hold while they run.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
# name: (x86-64, arm64); memory outside any process's size, ways into other processes, and what only
# attacks want
_REFUSED = {
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
}
# column above, AUDIT_ARCH_* of linux/audit.h
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# linux/bpf_common.h; offset 0 of what is looked at is the call's number, 4 the architecture
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000  # the same calls once more, under other numbers


def seccomp_filter(machine: str = "") -> bytes:
    """A classic BPF program for `bwrap --seccomp`; b'' on a machine whose numbers we do not have.

    It answers EPERM to the calls above and to those of another architecture.
    """
    if (machine or platform.machine()) not in _MACHINES:
        return b""
    column, arch = _MACHINES[machine or platform.machine()]
    numbers = [entry[column] for entry in _REFUSED.values()]
    refuse = 5 + len(numbers)  # its line; a jump counts from the line after it
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, refuse - 2, arch),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, refuse - 4, 0, _X32),
        *((_EQUAL, refuse - index - 1, 0, number) for index, number in enumerate(numbers, 4)),
        (_RETURN, 0, 0, 0x7FFF0000),
        (_RETURN, 0, 0, 0x00050000 | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def holds_more_than(root: int, limit: int) -> bool:
    """True when the processes below `root` hold more than `limit` bytes.

    Sizes are added up first, which is cheap and never too little, then shares.
    """
    return sum(map(_resident, _tree(root))) > limit and sum(map(_proportional, _tree(root))) > limit


def _tree(root: int) -> list[int]:
    """`root` and its descendants.

    A process that leaves its parent in the box comes under the box's own first process, so it stays
    below `root`.
    """
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except (OSError, ValueError):
            continue
    return found


def _resident(process: int) -> int:
    """Its size in memory, in bytes; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(process: int) -> int:
    """Its share of the pages it maps, in bytes; its size where the kernel does not say."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(process)
