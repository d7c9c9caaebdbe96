"""The inside of the sandbox: locks its own door, then runs the code. Read as text by sandbox.py.

On fd 0: 16 digits, that many bytes of JSON {code, call, cpu, memory, readable}, then the program's own input. argv: the
method, "namespaces" (user, net, pid, ipc, uts and mount namespaces are made here) or "bubblewrap" (they exist already).

Then, for both: landlock (files readable below a few directories, nothing writable, no TCP), limits of CPU, memory and
files, and a seccomp filter: no sockets, no new processes, no exec, no signals, no namespaces. Threads are allowed.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
from typing import Any

NEW_USER, NEW_NET, NEW_PID, NEW_IPC, NEW_UTS, NEW_MOUNT = 1 << 28, 1 << 30, 1 << 29, 1 << 27, 1 << 26, 1 << 17
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 1, 38, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ = 1 << 2 | 1 << 3  # files and directories
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
THREAD, X32 = 0x10000, 0x40000000
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
DENIED: dict[str, tuple[int, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendto": (44, 206), "recvfrom": (45, 207),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    "accept4": (288, 242), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "setpgid": (109, 154), "setsid": (112, 157), "personality": (135, 92), "prctl": (157, 167), "seccomp": (317, 277),
    "pivot_root": (155, 41), "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97),
    "setns": (308, 268), "reboot": (169, 142), "init_module": (175, 105), "finit_module": (313, 273),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "perf_event_open": (298, 241),
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_setup": (206, 0), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "mknod": (133, None), "mknodat": (259, 33), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
}  # fmt: skip
CLONE, CLONE3 = (56, 220), 435

libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> int:
    """The result of a C call, or an end with a message: nothing runs behind a door that did not close."""
    if result < 0:
        sys.stderr.write(f"sandbox: {what}: {errno.errorcode.get(ctypes.get_errno(), '?')}\n")
        sys.stderr.flush()
        os._exit(99)
    return result


def read_exactly(size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        piece = os.read(0, size - len(parts))
        if not piece:
            os._exit(98)
        parts += piece
    return parts


def new_namespaces() -> None:
    """In front of the code: a process that waits for it. Returns in the first process of the new namespaces."""
    user, group = os.geteuid(), os.getegid()
    must(libc.unshare(NEW_USER | NEW_NET | NEW_PID | NEW_IPC | NEW_UTS | NEW_MOUNT), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib takes 20 ms to import
            file.write(text)
    alive, held = os.pipe()
    child = os.fork()
    if child:
        os.close(alive)
        status = os.waitpid(child, 0)[1]
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    os.close(held)
    must(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if select.select([alive], [], [], 0)[0]:
        os._exit(97)  # the one in front ended before it could take this one along
    os.close(alive)


def lock_files(readable: list[str]) -> None:
    abi = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    must(-1 if abi < 1 else 0, "landlock")
    rights = FILE_RIGHTS.get(abi, (1 << 16) - 1)
    network = 3 if abi >= 4 else 0
    size = 8 if abi < 4 else 16
    ruleset = must(libc.syscall(LANDLOCK_CREATE, struct.pack("QQ", rights, network)[:size], size, 0), "landlock")
    for path in readable:
        try:
            directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        must(libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", READ, directory), 0), "landlock rule")
        os.close(directory)
    must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    must(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock restriction")
    os.close(ruleset)


def limit(cpu: int, memory: int) -> None:
    for kind, bound in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(kind, (bound, bound))


def lock_calls() -> None:
    machine, column = ARCHITECTURES[platform.machine()]
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
    load, equal, above, every, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(above, 0, 1, X32), (give, 0, 0, refuse), (equal, 0, 1, CLONE3), (give, 0, 0, absent)]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    program += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16), (every, 1, 0, THREAD), (give, 0, 0, refuse)]
    program += [(give, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    must(libc.prctl(PR_SET_SECCOMP, FILTER, header, 0, 0), "seccomp")


def run(request: dict[str, Any]) -> None:
    """The code as __main__; with a call, its value as repr is all that goes to fd 1."""
    scope: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    if not request["call"]:
        exec(compile(request["code"], "<answer>", "exec"), scope)  # noqa: S102 - what this file is for
        return
    scope["__name__"] = "answer"
    exec(compile(request["code"], "<answer>", "exec"), scope)  # noqa: S102 - what this file is for
    exec(compile(f"__value__ = ({request['call']})", "<call>", "exec"), scope)  # noqa: S102 - what this file is for
    sys.stdout.flush()
    os.write(request["result"], repr(scope["__value__"]).encode("utf-8", "replace")[: 1 << 16])


def main() -> None:
    request = json.loads(read_exactly(int(read_exactly(16))))
    if sys.argv[1] == "namespaces":
        new_namespaces()
    request["result"] = os.dup(1)
    if request["call"]:
        silence = os.open("/dev/null", os.O_WRONLY)
        os.dup2(silence, 1)
        os.close(silence)
    sys.path[:] = [path for path in sys.path if path]
    lock_files(request["readable"])
    limit(request["cpu"], request["memory"])
    lock_calls()
    run(request)


if __name__ == "__main__":
    main()
