"""A real, throw-away Slurm on this machine: munged, slurmctld and one slurmd a node, without systemd.

Every node has a host name of its own (`unshare --uts`) and an address in 127.0.1.0/24. Everything lives in one folder
and dies with `down()`: daemons by their process, what they left running by the folder's name in its environment or
among its open files. Slurm 22.05 of Debian 12 and 24.11 of Debian 13 take this configuration.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "unshare")


def install() -> str:
    """Installs Slurm from Debian's packages where it is missing; the reason why that cannot be, or empty."""
    if not (missing := [name for name in PROGRAMS if shutil.which(name) is None]):
        return ""
    if os.geteuid() != 0:
        return f"{', '.join(missing)} not installed, and only root can install them"
    if shutil.which("apt-get") is None:
        return f"{', '.join(missing)} not installed, and there is no apt-get"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *options, *command], env=env, capture_output=True, text=True)
        if done.returncode:
            return f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return ""


class Cluster:
    """`nodes` machines called node1, node2, ..."""

    def __init__(self, nodes: int = 2, cpus: int = 8) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="glmv-slurm-", dir="/tmp"))  # short: unix sockets end at 108 bytes
        self.root.chmod(0o755)  # munged refuses a socket below a folder that others cannot enter
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.conf = self.root / "slurm.conf"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env["SLURM_CONF"] = str(self.conf)
        self._port, self._cpus = _free_ports(nodes + 1), cpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> Cluster:
        """Starts everything and waits until every node is idle. Raises RuntimeError with the logs' tails."""
        for name in ("state", "spool", "log"):
            (self.root / name).mkdir()
        (self.root / "state").chmod(0o700)
        host = socket.gethostname().partition(".")[0]
        hosts = [f"127.0.0.1 localhost {host} {socket.gethostname()}"]
        hosts += [f"127.0.1.{number} {name}" for number, name in enumerate(self.nodes, start=1)]
        (self.root / "hosts").write_text("\n".join(hosts) + "\n")
        self.conf.write_text(self._configuration(host))
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._start(
            "munged", "munged", "--foreground", f"--socket={self.root}/munge.sock", f"--key-file={key}",
            f"--pid-file={self.root}/munged.pid", f"--log-file={self.root}/log/munged.log",
            f"--seed-file={self.root}/state/munged.seed",
        )  # fmt: skip
        self._until("munged", (self.root / "munge.sock").exists)
        self._start("slurmctld", "slurmctld", "-D")
        self._until("slurmctld", lambda: self._ok("scontrol", "ping"))
        for node in self.nodes:
            self._start_node(node)
        self._until("idle nodes", lambda: self.node_states() == dict.fromkeys(self.nodes, "idle"))
        self._until(
            "a job step", lambda: self._ok("srun", "-Q", f"-N{len(self.nodes)}", "-t1", "--immediate=10", "true")
        )
        return self

    def run(self, *argv: str) -> str:
        """What a command of Slurm prints. Raises CalledProcessError."""
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, check=True, timeout=60).stdout

    def node_states(self) -> dict[str, str]:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N %T", "-p", "main"], env=self.env, capture_output=True, text=True
        )
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def job(self, number: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        text = self.run("scontrol", "-o", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, what: str, reached: Callable[[], object], timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {timeout} s; queue:\n{self.run('squeue', '-a')}")
            time.sleep(0.2)

    def wait_for_state(self, number: str, *states: str, timeout: float = 180) -> dict[str, str]:
        self.wait(f"job {number} {states}", lambda: self.job(number)["JobState"] in states, timeout)
        return self.job(number)

    def processes_of(self, number: str) -> list[int]:
        """Those of a job that are alive, wherever it ran: its number is in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                if env.get("SLURM_CONF") == str(self.conf) and env.get("SLURM_JOB_ID") == number:
                    found.append(process.pid)
        return found

    def kill_node(self, node: str) -> int:
        """As if its power went: slurmd, its slurmstepds and all that they run. How many processes that were."""
        victims = [psutil.Process(pid) for pid in self._slurmd_pids(node)]
        victims += [step for step in _slurmstepds() if _has_open(step, self.root / "log" / f"slurmd.{node}.log")]
        every = {process for victim in victims for process in [victim, *victim.children(recursive=True)]}
        for process in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(every)

    def hang_node(self, node: str) -> None:
        """Slurm loses sight of the node (its slurmd dies), and what runs there goes on."""
        for pid in self._slurmd_pids(node):
            os.kill(pid, signal.SIGKILL)

    def revive_node(self, node: str) -> None:
        (self.root / f"slurmd.{node}.pid").unlink(missing_ok=True)
        self._start_node(node)
        self._until(f"{node} back", lambda: self.node_states().get(node) in ("idle", "mixed", "allocated"))

    def down(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(["scancel", "--signal=KILL", "-u", "root"], env=self.env, timeout=10, capture_output=True)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf) and "SLURMD_NODENAME" in process.environ():
                    process.kill()
        for step in _slurmstepds():
            if any(_has_open(step, self.root / "log" / f"slurmd.{node}.log") for node in self.nodes):
                step.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def _configuration(self, host: str) -> str:
        newer = "slurm-wlm 22.05" not in self.run("slurmctld", "-V") if shutil.which("slurmctld") else False
        preempt = "PreemptParameters=send_user_signal" if newer else "SlurmctldParameters=preempt_send_user_signal"
        nodes = [
            f"NodeName={node} NodeAddr=127.0.1.{number} Port={self._port + number} Sockets=1 "
            f"CoresPerSocket={self._cpus} ThreadsPerCore=1 RealMemory=8192"
            for number, node in enumerate(self.nodes, start=1)
        ]
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={self._port}",
            "SlurmUser=root", "SlurmdUser=root", "AuthType=auth/munge", "CredType=cred/munge",
            f"AuthInfo=socket={self.root}/munge.sock,cred_expire=5",  # a requeued job starts after as long: 120 s else
            f"StateSaveLocation={self.root}/state", f"SlurmdSpoolDir={self.root}/spool/%n",
            f"SlurmctldPidFile={self.root}/slurmctld.pid", f"SlurmdPidFile={self.root}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.root}/log/slurmctld.log", f"SlurmdLogFile={self.root}/log/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none",
            "MpiDefault=none", "MailProg=/bin/true", "SlurmdParameters=config_overrides",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core_Memory", "DefMemPerCPU=64",
            "ReturnToService=2", "JobCompType=jobcomp/none", "MinJobAge=3600", "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2",
            "SlurmdTimeout=10", "SlurmctldTimeout=10", "MessageTimeout=10", "KillWait=5", "BatchStartTimeout=10",
            "UnkillableStepTimeout=60", "InactiveLimit=0", "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE", preempt, "AccountingStorageType=accounting_storage/none", *nodes,
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP",
            "PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _start(self, name: str, *command: str) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _start_node(self, node: str) -> None:
        (self.root / "spool" / node).mkdir(exist_ok=True)
        inside = 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2"'
        command = ["unshare", "--uts", "--mount", "--propagation", "slave", "sh", "-c", inside, "sh"]
        self._start(f"slurmd.{node}", *command, str(self.root / "hosts"), node)

    def _slurmd_pids(self, node: str) -> list[int]:
        return [self._daemons[f"slurmd.{node}"].pid]  # unshare and sh are replaced by slurmd

    def _ok(self, *argv: str) -> bool:
        return subprocess.run(argv, env=self.env, capture_output=True, timeout=30).returncode == 0

    def _until(self, what: str, reached: Callable[[], bool], timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                tails = [f"--- {log}\n{_tail(log)}" for log in sorted((self.root / "log").iterdir())]
                raise RuntimeError(f"no {what} within {timeout} s\n" + "\n".join(tails))
            time.sleep(0.05)


def _slurmstepds() -> Sequence[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "slurmstepd" in process.exe():
                found.append(process)
    return found


def _has_open(process: psutil.Process, file: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(link.readlink() == file for link in Path(f"/proc/{process.pid}/fd").iterdir())
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def _free_ports(count: int) -> int:
    """The first of `count` ports behind one another that nobody listens on."""
    for base in range(26000 + os.getpid() % 3000, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                return base
            except OSError:
                continue
    raise RuntimeError("no free ports")
