"""The way into the browser's sandbox. Read as text by browser.py; argv: read end, write end, memory in bytes, command.

In front stays a process that waits for the end of standard input, which the trainer holds, or of the browser. Behind
it the browser is the first process of new user, network, process, ipc and mount namespaces: no network but an unborn
loopback, a /tmp of its own in memory, and when it goes (or the process in front) everything that it started goes too.
"""

import ctypes
import os
import resource
import select
import signal
import sys

NEW_USER, NEW_NET, NEW_PID, NEW_IPC, NEW_MOUNT = 1 << 28, 1 << 30, 1 << 29, 1 << 27, 1 << 17
PR_SET_PDEATHSIG, NOSUID_NODEV = 1, 2 | 4
libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    if result < 0:
        sys.stderr.write(f"{what}: {os.strerror(ctypes.get_errno())}\n")
        sys.stderr.flush()
        os._exit(99)


def main() -> None:
    incoming, outgoing, memory = (int(text) for text in sys.argv[1:4])
    user, group = os.geteuid(), os.getegid()
    must(libc.unshare(NEW_USER | NEW_NET | NEW_PID | NEW_IPC | NEW_MOUNT), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib takes 20 ms to import
            file.write(text)
    child = os.fork()
    if child:
        os.close(incoming)
        os.close(outgoing)
        select.select([0, os.pidfd_open(child)], [], [])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os._exit(0)
    must(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    must(libc.mount(b"proc", b"/proc", b"proc", NOSUID_NODEV, None), "mount /proc")
    must(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", NOSUID_NODEV, b"size=256m"), "mount /tmp")
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    incoming, outgoing = os.dup(incoming), os.dup(outgoing)
    while min(incoming, outgoing) < 5:  # 3 and 4 are where the browser looks
        incoming, outgoing = os.dup(incoming), os.dup(outgoing)
    os.dup2(incoming, 3)
    os.dup2(outgoing, 4)
    silence = os.open("/dev/null", os.O_RDWR)
    os.dup2(silence, 0)
    os.chdir("/tmp")  # noqa: S108
    os.execvp(sys.argv[4], sys.argv[4:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
