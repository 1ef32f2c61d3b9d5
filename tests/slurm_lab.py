"""A real SLURM on this machine for tests: one slurmctld, several slurmd, no services, no root, all in a folder.

``Lab`` starts in a second: two CPU nodes, two nodes with two fake GPUs each, partitions ``cpu``, ``gpu``, ``requeue``
and ``cancel`` (what becomes of jobs that are preempted there). It wants the Debian packages slurmctld, slurmd and
slurm-client; with accounting slurmdbd and mariadb-server too.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

VARIABLE = "PEFTBENCH_SLURM_TESTS"
"""Environment variable: set in CI, where no test of SLURM may be skipped."""
DAEMONS = ("slurmctld", "slurmd", "squeue")
ACCOUNTING = ("slurmdbd", "mariadbd", "sacct")
NODES = ("c1", "c2", "g1", "g2")
SAME = ("*.safetensors", "*.parquet", "tables/*.csv")
"""Of results made on SLURM and elsewhere, what must be equal bit for bit: data, weights, answers, scores, tables."""
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port[ctld]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
InactiveLimit=0
KillWait=3
MinJobAge={age}
SlurmctldTimeout=60
SlurmdTimeout=6
MessageTimeout=10
BatchStartTimeout=10
TCPTimeout=2
Waittime=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
DefMemPerCPU=100
{nodes}
PartitionName=cpu Nodes=c1,c2 Default=YES MaxTime=1-00:00:00 DefaultTime=10 State=UP PriorityTier=10
PartitionName=gpu Nodes=g1,g2 MaxTime=1-00:00:00 DefaultTime=10 State=UP PriorityTier=10
PartitionName=requeue Nodes=g1,g2 MaxTime=1-00:00:00 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=cancel Nodes=g1,g2 MaxTime=1-00:00:00 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=short Nodes=c1,c2 MaxTime=30 DefaultTime=10 State=UP PriorityTier=10
"""
DBD_CONF = """
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port[dbd]}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port[sql]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=1
"""


def content(results: Path) -> dict[str, bytes]:
    """Bytes by name of what must be equal."""
    paths = [path for pattern in SAME for path in sorted(results.rglob(pattern))]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


def lacking(accounting: bool = False) -> str:
    """What has to be installed; empty where all is there."""
    programs = DAEMONS + (ACCOUNTING if accounting else ())
    missing = [name for name in programs if shutil.which(name, path=SEARCH) is None]
    packages = "slurmctld slurmd slurm-client" + (" slurmdbd mariadb-server" if accounting else "")
    return f"no {missing[0]}: apt-get install --no-install-recommends {packages}" if missing else ""


def wait_for(what: Callable[[], object], seconds: float = 60.0, every: float = 0.1) -> object:
    """The first true value of ``what``."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(every)
    return found


class Lab:
    """One cluster."""

    def __init__(self, accounting: bool = False, min_job_age: int = 300, cpus: int = 8) -> None:
        """``cpus``: that each node says it has."""
        self.folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        self.accounting = accounting
        self._sql: subprocess.Popen[bytes] | None = None
        names = ("ctld", "dbd", "sql", *NODES)
        sockets = [socket.socket() for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        self.port = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
        for one in sockets:
            one.close()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SNAKEMAKE_"))
        } | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._write(min_job_age, cpus)

    def _write(self, age: int, cpus: int) -> None:
        host, user = socket.gethostname().partition(".")[0], getpass.getuser()
        for name in ("state", "dev", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        for number in (0, 1):
            (self.folder / f"dev/nvidia{number}").symlink_to("/dev/null")
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port[node]} "
            + f"CPUs={cpus} RealMemory=32000 "
            + ("Gres=gpu:a100:2 Feature=a100 " if node.startswith("g") else "")
            + "State=UNKNOWN"
            for node in NODES
        ]
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
                f"AccountingStoragePort={self.port['dbd']}\nAccountingStorageTRES=gres/gpu"
            )
        values = {"folder": self.folder, "host": host, "user": user, "port": self.port}
        conf = CONF.format(nodes="\n".join(nodes), accounting=accounting, age=age, **values)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=g[1-2] Name=gpu Type=a100 File={self.folder}/dev/nvidia[0-1]\n"
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        (self.folder / "slurmdbd.conf").write_text(DBD_CONF.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)

    # Programs

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a program of SLURM."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """A job's state, as squeue has it."""
        return self.run("squeue", "--states=all", "-h", "-o", "%T", "-j", job, check=False)

    def mine(self) -> list[list[str]]:
        """All jobs that the controller remembers: id, state, name, restarts, oldest first."""
        text = self.run("squeue", "--states=all", "-h", "-o", "%i|%T|%j|%Y", check=False)
        return sorted((line.split("|") for line in text.splitlines()), key=lambda row: int(row[0]))

    # Daemons

    def start(self) -> "Lab":
        """All of them; returns when all nodes are idle."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        if self.accounting:
            self._start_sql()
            self.start_dbd()
            for words in ("cluster lab", "account lab cluster=lab", f"user {getpass.getuser()} account=lab"):
                self.run("sacctmgr", "-i", "add", *words.split())
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: all(state == "idle" for state in self.nodes().values()), 30)

    def nodes(self) -> dict[str, str]:
        """State by name."""
        text = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False)
        found = dict(line.split() for line in text.splitlines())
        return found if len(found) == len(NODES) else dict.fromkeys(NODES, "?")

    def _daemon(self, *command: str) -> None:
        program = shutil.which(command[0], path=SEARCH)
        assert program
        subprocess.run([program, *command[1:]], env=self.environment, check=True, timeout=60)

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-f", str(self.folder / "slurm.conf"))

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def start_dbd(self) -> None:
        self._daemon("slurmdbd")

        def answers() -> bool:
            command = ["sacctmgr", "-n", "show", "cluster"]
            return subprocess.run(command, env=self.environment, capture_output=True).returncode == 0

        wait_for(answers, 30)

    def _start_sql(self) -> None:
        user, data = getpass.getuser(), self.folder / "sql"
        subprocess.run(
            [
                *(
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--user={user}",
                    "--skip-test-db",
                ),
                *("--auth-root-authentication-method=normal", "--innodb-log-file-size=8M"),
            ],
            check=True,
            capture_output=True,
        )
        plug = self.folder / "sql.sock"
        self._sql = subprocess.Popen(
            [
                *(
                    shutil.which("mariadbd", path=SEARCH),
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--user={user}",
                ),
                *("--bind-address=127.0.0.1", f"--port={self.port['sql']}", f"--socket={plug}"),
                *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--innodb-use-native-aio=0"),
                *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
            ],
            stdout=(self.folder / "sql.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        client = ["mariadb", "--no-defaults", "-S", str(plug), "-u", "root", "-e"]
        wait_for(lambda: subprocess.run([*client, "select 1"], capture_output=True).returncode == 0, 30)
        rights = "GRANT ALL ON slurm_acct_db.* TO slurm@{0}; "
        users = ("'127.0.0.1'", "localhost")
        make = "".join(f"CREATE USER slurm@{u} IDENTIFIED BY 'slurm'; " + rights.format(u) for u in users)
        subprocess.run([*client, "CREATE DATABASE slurm_acct_db; " + make], check=True, capture_output=True)

    def _pid(self, name: str) -> int:
        path = self.folder / f"{name}.pid"
        return int(path.read_text()) if path.exists() and path.read_text().strip() else 0

    def stop_daemon(self, *names: str) -> None:
        """End daemons (slurmctld, slurmdbd, slurmd.g1), and return when they are gone."""
        there = []
        for name in names:
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid := self._pid(name):
                    there.append(psutil.Process(pid))
        for process in there:
            process.terminate()
        for process in psutil.wait_procs(there, timeout=8)[1]:
            process.kill()
        for name in names:
            (self.folder / f"{name}.pid").unlink(missing_ok=True)

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone: its jobs run on."""
        os.kill(self._pid(f"slurmd.{node}"), signal.SIGKILL)
        (self.folder / f"slurmd.{node}.pid").unlink()

    def kill_node(self, node: str) -> None:
        """As a power cut: the daemon, what it started, and all that runs below."""
        self.kill_slurmd(node)
        for _ in range(5):  # also what was just being started
            for process in self._of_node(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.2)

    def repair(self) -> None:
        """Start the daemons that are not there, and wait until all nodes take jobs."""
        if not self._pid("slurmctld"):
            self.start_controller()
        for node in NODES:
            if not self._pid(f"slurmd.{node}"):
                self.start_node(node)
        wait_for(lambda: not set(self.nodes().values()) - {"idle", "mix", "alloc", "comp"}, 40)

    def _of_node(self, node: str) -> list[psutil.Process]:
        """slurmstepd blanks its environment, but keeps the node's log open."""
        log, found = str(self.folder / f"slurmd.{node}.log"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("slurmstepd") and log in [f.path for f in process.open_files()]:
                    found += [process, *process.children(recursive=True)]
        return found

    def stop(self) -> None:
        """End everything and remove the folder."""
        self.run("scancel", "--quiet", "-u", getpass.getuser(), check=False)
        strays = [process for node in NODES for process in self._of_node(node)]
        self.stop_daemon("slurmctld", *(f"slurmd.{node}" for node in NODES))
        for process in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.accounting:
            self.stop_daemon("slurmdbd")
            if self._sql is not None:
                self._sql.terminate()
                self._sql.wait(timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)
