"""Launchers: lost work starts again, and a suite ends as if no worker had died."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.exceptions import MlflowException

from bench.errors import BadSetting, UnknownName
from bench.experiments.launch import Event, InProcess, Launcher, WorkItem, make_launcher, run_items
from bench.experiments.launch.local import LocalLauncher, threads_per_worker
from bench.experiments.launch.on_ray import connect as connect_ray
from bench.experiments.run import execute
from bench.experiments.suite import DONE, run_suite
from bench.experiments.suite_file import read_suite
from bench.tracking import Store, connect, find_folds, read_table, search_runs
from bench.tracking.store import RetryingClient

TINY = {
    "title": "two",
    "base": {
        "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
        "split": {"name": "patients", "folds": 3},
        "train": {"epochs": 8, "batch_size": 4, "lr": 0.01},
        "checkpoint_every": 0,
    },
    "entries": {
        "a": {"model": {"name": "unet", "base": 4, "depth": 2}},
        "b": {"model": {"name": "unet", "base": 2}},
    },
}


class Scripted:
    """A launcher whose items end as the next word of their scripts says: '' finished, anything else how lost."""

    def __init__(self, workers: int, **scripts: list[str]) -> None:
        self.workers, self.scripts = workers, scripts
        self.started: list[str] = []
        self.stopped: list[str] = []

    def start(self, item: WorkItem) -> Scripted.Work:
        self.started.append(item.name)
        return Scripted.Work(self, item.name)

    class Work:
        def __init__(self, owner: Scripted, name: str) -> None:
            self.owner, self.name = owner, name

        def poll(self) -> str | None:
            script = self.owner.scripts[self.name]
            return script.pop(0) if script else None

        def stop(self) -> None:
            self.owner.stopped.append(self.name)

        def join(self) -> None:
            self.owner.stopped.append(f"{self.name} was joined")


def item(name: str) -> WorkItem:
    return WorkItem(name, print)


def outcomes(events) -> list[str]:
    return [f"{event.item.name} {event.kind}" for event in events]


def test_a_lost_item_starts_again_and_is_given_up_after_its_retries() -> None:
    launcher = Scripted(1, a=["died", "died", "died"], b=["died", ""])
    events = list(run_items([item("a"), item("b")], launcher, retries=2, pause=0))
    assert sorted(outcomes(events)) == ["a given up", "a lost", "a lost", "b finished", "b lost"]
    assert Event(item("a"), "given up", "died") in events
    assert launcher.started == ["a", "a", "a", "b", "b"]


def test_an_item_is_taken_only_when_a_worker_is_free() -> None:
    launcher = Scripted(2, a=[""], b=[""], c=[""])
    taken: list[str] = []

    def items():
        for name in "abc":
            taken.append(name)
            yield item(name)

    events = run_items(items(), launcher, pause=0)
    next(events)
    assert taken == ["a", "b"]
    assert outcomes(events) == ["b finished", "c finished"]


def test_closing_the_events_stops_the_running_items() -> None:
    """All are stopped before any is waited for, so that none continues to run in the meantime."""
    launcher = Scripted(3, a=[""], b=[], c=[])
    events = run_items([item("a"), item("b"), item("c")], launcher, pause=0)
    next(events)
    events.close()
    assert launcher.stopped == ["b", "c", "b was joined", "c was joined"]


def test_without_workers_items_run_in_turn_in_this_process() -> None:
    done: list[str] = []
    events = run_items([WorkItem(name, done.append, (name,)) for name in "ab"], InProcess())
    assert outcomes(events) == ["a finished", "b finished"]
    assert done == ["a", "b"]


ONCE = """
import os, signal
from contextlib import suppress
from pathlib import Path
if not Path({mark!r}).exists():
    Path({mark!r}).touch()
    os.kill(os.getpid(), signal.SIGKILL)
Path({out!r}).write_text(os.environ["OMP_NUM_THREADS"])
"""


def slurm_answers() -> bool:
    return shutil.which("sinfo") is not None and subprocess.run("sinfo", capture_output=True).returncode == 0


@pytest.fixture(params=["local", "ray", "submitit", "slurm"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "local":
        yield LocalLauncher(2)
    elif request.param == "slurm":
        pytest.importorskip("submitit")
        if not slurm_answers():
            pytest.skip("no Slurm cluster answers")
        yield make_launcher("slurm", 2, {"folder": str(tmp_path / "jobs"), "timeout_min": 5, "ask_every": 1})
    elif request.param == "submitit":
        submitit = pytest.importorskip("submitit")
        request.getfixturevalue("monkeypatch").setattr(submitit.core.core.Job, "_results_timeout_s", 1)  # of 15
        yield make_launcher("slurm", 2, {"cluster": "local", "folder": str(tmp_path / "jobs"), "timeout_min": 5})
    else:
        yield request.getfixturevalue("cluster")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine with two worker processes."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield make_launcher("ray", None, {})
    ray.shutdown()


@pytest.mark.slow
def test_every_launcher_distinguishes_lost_from_finished_work(launcher: Launcher, tmp_path: Path) -> None:
    once = ONCE.format(mark=str(tmp_path / "mark"), out=str(tmp_path / "out"))
    items = [
        WorkItem("once", exec, (once,)),
        WorkItem("always", signal.raise_signal, (signal.SIGKILL,)),
        WorkItem("fine", (tmp_path / "fine").touch),
        WorkItem("wrong", int, ("x",)),
    ]
    events = list(run_items(items, launcher, retries=1))
    assert sorted(outcomes(events)) == [
        *("always given up", "always lost", "fine finished", "once finished", "once lost"),
        *("wrong given up", "wrong lost"),
    ]
    assert all("ValueError: invalid literal for int()" in e.reason for e in events if e.item.name == "wrong")
    assert not any("\n" in event.reason for event in events)
    assert (tmp_path / "out").read_text() == "1"
    assert (tmp_path / "fine").exists()


@pytest.mark.slow
def test_the_event_of_a_local_worker_says_how_it_was_lost() -> None:
    items = [WorkItem("killed", signal.raise_signal, (signal.SIGKILL,)), WorkItem("wrong", int, ("x",))]
    reasons = {e.item.name: e.reason for e in run_items(items, LocalLauncher(2), retries=0)}
    assert reasons["killed"] == "killed by SIGKILL"
    assert reasons["wrong"].startswith("exit code 1: ValueError: invalid literal")


@pytest.mark.slow
def test_local_workers_take_gpus_in_turn(tmp_path: Path) -> None:
    code = "import os; from pathlib import Path; Path({!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    # The first waits for the second; otherwise one worker could do both.
    wait = "import time\nwhile not Path({!r}).exists(): time.sleep(0.05)"
    outs = [tmp_path / "0", tmp_path / "1"]
    codes = [code.format(str(outs[0])) + "\n" + wait.format(str(outs[1])), code.format(str(outs[1]))]
    items = [WorkItem(str(n), exec, (code,)) for n, code in enumerate(codes)]
    list(run_items(items, LocalLauncher(2, gpus=["4", "GPU-7"])))
    assert [out.read_text() for out in outs] == ["4", "GPU-7"]


def test_local_workers_share_the_cores(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    assert [threads_per_worker(workers) for workers in (1, 3, 20)] == [8, 2, 1]


@pytest.mark.parametrize(
    ("option", "gpus"), [(0, ["0"]), ("0,1", ["0", "1"]), ("GPU-7", ["GPU-7"]), ([2, "3"], ["2", "3"])]
)
def test_gpus_are_given_as_cuda_visible_devices_or_as_a_list(option, gpus) -> None:
    assert LocalLauncher(gpus=option).gpus == gpus


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("rai", {}, UnknownName, "local, ray, slurm"),
        ("local", {"adress": "auto"}, BadSetting, "adress"),
    ],
)
def test_an_unknown_launcher_or_option_is_refused(name, options, error, message) -> None:
    with pytest.raises(error, match=message):
        make_launcher(name, 2, options)


@pytest.mark.slow
def test_a_ray_task_has_as_many_threads_as_cores(cluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = "import os; from pathlib import Path; Path({!r}).write_text(os.environ['OMP_NUM_THREADS'])"
    one = WorkItem("a", exec, (code.format(str(tmp_path / "a")),))
    list(run_items([one], make_launcher("ray", None, {"cpus": 2})))
    assert (tmp_path / "a").read_text() == "2"


class FakeRay:
    """Ray before it is connected: it records the address, or refuses."""

    def __init__(self, refusal: str = "") -> None:
        self.exceptions = pytest.importorskip("ray").exceptions
        self._private = pytest.importorskip("ray")._private
        self.refusal, self.address = refusal, None

    def init(self, *, address: str, **rest: object) -> None:
        self.address = address
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        if self.refusal:
            raise self.exceptions.AuthenticationError(self.refusal)


@pytest.fixture
def closed() -> str:
    """An address that nothing listens on."""
    with socket.socket() as one:
        one.bind(("", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_a_ray_cluster_that_does_not_answer_is_reported_at_once(closed, monkeypatch) -> None:
    ray = FakeRay()
    for address in (closed, f"ray://{closed}", "nowhere.invalid:6379"):
        with pytest.raises(BadSetting, match=r"no Ray cluster answers at .*address=HOST:PORT"):
            connect_ray(ray, address)
    with pytest.raises(BadSetting, match="Invalid address format"):
        connect_ray(ray, "nowhere")
    monkeypatch.setenv("RAY_ADDRESS", closed)
    for address in (None, "auto"):
        with pytest.raises(BadSetting, match="no Ray cluster answers at"):
            connect_ray(ray, address)
    assert ray.address is None


def test_a_ray_cluster_that_needs_a_token_says_how_to_set_it() -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BadSetting, match=r"ray: No token was found\. .*RAY_AUTH_MODE=token") as error:
            connect_ray(FakeRay("No token was found. There is more to say."), address)
    assert "more to say" not in str(error.value)


def test_without_an_address_ray_does_not_look_for_a_cluster(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay()
    connect_ray(ray, None)
    assert ray.address == "local"


def test_connecting_to_ray_keeps_the_handler_of_sigterm() -> None:
    def handler(*_: object) -> None:
        """Stands for the handler of the command line."""

    before = signal.signal(signal.SIGTERM, handler)
    try:
        connect_ray(FakeRay(), "local")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch):
    """A fake Slurm queue that accepts every job as number 7 and reports the returned file; nothing runs."""
    pytest.importorskip("submitit")
    states = tmp_path / "states"
    scripts = {
        "sbatch": f'cp "$1" {tmp_path}/batch.sh; echo Submitted batch job 7',
        "squeue": f"cat {states}",
        "srun": f'echo "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK" > {tmp_path}/threads',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return states


def test_the_slurm_queue_says_whether_a_job_is_lost(queue: Path, tmp_path: Path) -> None:
    job = make_launcher("slurm", 1, {"folder": str(tmp_path / "jobs"), "ask_every": 0}).start(item("a"))
    assert job.poll() is None  # squeue has failed
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        queue.write_text(f"6 CANCELLED\n7 {state}\n")
        assert job.poll() is None
    queue.write_text("7 NODE_FAIL\n")
    assert job.poll().startswith("job 7: NODE_FAIL, see ")
    queue.write_text("6 RUNNING\n")
    assert job.poll().startswith("job 7: FORGOTTEN")


def test_an_answer_older_than_the_job_says_nothing_about_it(queue: Path, tmp_path: Path) -> None:
    slurm = make_launcher("slurm", 2, {"folder": str(tmp_path / "jobs"), "ask_every": 3600})
    queue.write_text("7 CANCELLED\n")
    assert slurm.start(item("a")).poll() is not None
    assert slurm.start(item("b")).poll() is None


def test_a_slurm_job_has_the_options_and_one_thread_per_core(queue: Path, tmp_path: Path) -> None:
    options = {"cpus_per_task": 4, "mem_gb": 8, "gpus_per_node": 1, "slurm_partition": "long"}
    options |= {"slurm_setup": [f"echo loaded > {tmp_path}/module"], "folder": str(tmp_path / "jobs")}
    make_launcher("slurm", 1, options).start(item("a"))
    script = (tmp_path / "batch.sh").read_text()
    for line in ("cpus-per-task=4", "mem=8GB", "gpus-per-node=1", "partition=long", "time=1440"):
        assert f"\n#SBATCH --{line}\n" in script
    environment = os.environ | {"SLURM_CPUS_ON_NODE": "4", "OMP_NUM_THREADS": "7"}
    subprocess.run(["bash", str(tmp_path / "batch.sh")], env=environment, check=True)
    assert (tmp_path / "threads").read_text() == "4 4\n"
    assert (tmp_path / "module").read_text() == "loaded\n"


def test_an_option_that_slurm_rejects_is_a_bad_setting(queue: Path, tmp_path: Path, monkeypatch) -> None:
    options = {"folder": str(tmp_path / "jobs")}
    for wrong in ({"slurm_partitio": "long"}, {"mem_gb": "much"}):
        with pytest.raises(BadSetting, match=next(iter(wrong))):
            make_launcher("slurm", 1, options | wrong)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition >&2; exit 1\n")
    with pytest.raises(BadSetting, match="slurm: sbatch: error: invalid partition"):
        make_launcher("slurm", 1, options).start(item("a"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadSetting, match="are you indeed on a slurm cluster"):
        make_launcher("slurm", 1, options)


CROWD = """
    import os, sys, time
    from pathlib import Path
    from bench.tracking import connect, open_run
    children = []
    for number in range(8):
        if not (child := os.fork()):
            with open_run(connect(sys.argv[1]), f"run {number}", "crowd", {"number": str(number)}) as run:
                run.settings({"number": number})
                with run.child("fold 0") as fold:
                    for step in range(10):
                        fold.metrics({"a": number + step, "b": step}, step)
                        fold.tags({f"tag {step}": str(number)})
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.slow
def test_processes_that_log_to_one_store_lose_and_duplicate_nothing(store: Store) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CROWD), store.uri]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    runs = {run.data.tags["number"]: run for run in search_runs(store, {"bench.kind": "cv"})}
    assert len(search_runs(store, {"bench.kind": "cv"})) == len(runs) == 8
    assert [e.name for e in store.client.search_experiments()].count("crowd") == 1
    for number in range(8):
        run = runs[str(number)]
        assert (run.info.status, run.data.params) == ("FINISHED", {"number": str(number)})
        (fold,) = search_runs(store, {"mlflow.parentRunId": run.info.run_id})
        for name, start in (("a", number), ("b", 0)):
            history = store.client.get_metric_history(fold.info.run_id, name)
            assert [(m.step, m.value) for m in history] == [(step, start + step) for step in range(10)]
        assert {fold.data.tags[f"tag {step}"] for step in range(10)} == {str(number)}


def test_a_write_to_a_locked_database_is_retried_but_not_metrics() -> None:
    class Locked:
        calls = 0

        def set_tag(self, *_: str, metrics: object = None) -> str:
            self.calls += 1
            if self.calls < 3:
                raise MlflowException("(sqlite3.OperationalError) database is locked")
            return "written"

        log_batch = set_tag

        def refuse(self) -> None:
            self.calls += 1
            raise MlflowException("no such run")

    assert RetryingClient(Locked(), pauses=(0, 0)).set_tag("run", "key", "value") == "written"
    with pytest.raises(MlflowException, match="locked"):
        RetryingClient(Locked(), pauses=(0,)).set_tag("run", "key", "value")
    for call, named in (("refuse", {}), ("log_batch", {"metrics": []})):
        client = Locked()
        with pytest.raises(MlflowException):
            getattr(RetryingClient(client, pauses=(0, 0)), call)(**named)
        assert client.calls == 1


def kill_one(folder: Path, killed: list[str]) -> None:
    """SIGKILL the process that holds the lock of the first run with a finished fold."""
    deadline = time.monotonic() + 120
    holders: dict[Path, psutil.Process] = {}  # found while they train, because a fold ends within a second
    while time.monotonic() < deadline:
        for workspace in folder.glob("mlruns/unfinished/*"):
            if workspace in holders and list(workspace.glob("fold-*/result.state")):
                holders[workspace].kill()
                killed.append(workspace.name)
                return
            if workspace not in holders:
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):  # Ray starts and ends processes
                        if any(file.path == str(workspace / "lock") for file in process.open_files()):
                            holders[workspace] = process
        time.sleep(0.02)


def check_survival(folder: Path, template: Path, launcher: Launcher, entries: str) -> None:
    """Kill a worker, and check that every cell is done in one run with the results of an undisturbed run."""
    for name in ("mlruns", "undisturbed"):
        shutil.copytree(template, folder / name)
    wanted = {name: TINY["entries"][name] for name in entries}
    (folder / "two.yaml").write_text(yaml.safe_dump(TINY | {"entries": wanted}))
    suite = read_suite(folder / "two.yaml")
    uri, texts, killed = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}", [], []
    killer = threading.Thread(target=kill_one, args=(folder, killed))
    killer.start()
    states = run_suite(suite, uri=uri, launcher=launcher, report=lambda cell, state, text: texts.append(text))
    killer.join()
    print("\n".join(texts))
    store: Store = connect(uri)
    assert [s.state for s in states] == [DONE] * len(entries)
    assert sum("has lost its worker" in text for text in texts) == len(killed) == 1
    parents = search_runs(store, {"bench.kind": "cv"})
    assert {run.info.run_id for run in parents} == {s.run.info.run_id for s in states}
    assert killed[0] in {run.info.run_id for run in parents}
    for run in parents:
        folds = find_folds(store, run)
        assert len(search_runs(store, {"mlflow.parentRunId": run.info.run_id})) == len(folds) == 3
        for fold in folds.values():
            history = store.client.get_metric_history(fold.info.run_id, "train/loss")
            assert [metric.step for metric in history] == list(range(1, 9))
    lost = next(s for s in states if s.run.info.run_id == killed[0])
    other = connect(f"sqlite:///{folder / 'undisturbed' / 'mlflow.db'}")
    undisturbed = other.client.get_run(execute(lost.cell.what, uri=other.uri, quiet=True).run_id)
    assert read_table(store, lost.run, "cases").equals(read_table(other, undisturbed, "cases"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "entries"), [("local", "a"), ("ray", "ab")])
def test_a_suite_survives_the_death_of_a_worker(name, entries, tmp_path, template, monkeypatch, request) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    workers = LocalLauncher(2) if name == "local" else request.getfixturevalue("cluster")
    check_survival(tmp_path, template, workers, entries)
