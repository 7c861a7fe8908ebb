"""Jobs on a real Slurm: two nodes x one process, launched as a user would.

The first runs the quickstart's setting, rollouts and all. The others train on given responses:
they start in seconds, and what they test, signals and exit codes, is the same.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
JOB_S = 240.0  # one job on a busy machine; 40 s on an idle one
SECRET = "hf_not_a_real_token_8f2c"
EVALUATION = (  # a second job, after the first one
    *("--then", "evaluate", "checkpoint.export_hf=true"),
    *("data.eval=assets/arithmetic/eval.jsonl", "evaluation.max_response_tokens=8"),
)
KD_SETTINGS = (
    *("algorithm.name=kd", "rollout=null", "model.teacher=null", "data.eval=null"),
    *("evaluation.every=0", "evaluation.before=false", "evaluation.after=false"),
    *("train.batch_sequences=4", "train.microbatch_tokens=128", "checkpoint.export_hf=false"),
)


class Submitted:
    """One job: its number, where it writes, and how the launcher answered."""

    def __init__(self, cluster: Cluster, directory: Path, *arguments: str) -> None:
        self.cluster, self.out = cluster, directory / "out"
        self.environment = cluster.environment | {
            "NEMORUN_HOME": str(directory / "home"),
            "HF_TOKEN": SECRET,
            "OMP_NUM_THREADS": "1",
        }
        self.answer = self.run(
            *("launch.run", str(QUICKSTART), "--executor", "slurm", "--nodes", "2"),
            *(*arguments, f"output_dir={self.out}"),
        )
        assert self.answer.returncode == 0, self.answer.stdout + self.answer.stderr
        found = re.findall(r"submitted job (\d+): \S+ in (\S+)", self.answer.stdout)
        assert found, self.answer.stdout
        self.numbers = [number for number, _ in found]
        self.number, self.job_dir = found[0][0], Path(found[0][1])

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=JOB_S,
        )

    def fields(self, number: str = "") -> dict[str, str]:
        line = self.cluster.ask("scontrol", "show", "--oneliner", "job", number or self.number)
        return dict(re.findall(r"(\w+)=(\S*)", line))

    def until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + JOB_S
        while not happened():
            assert time.monotonic() < deadline, f"no {what} after {JOB_S:g} s\n{self.logs()}"
            time.sleep(0.1)

    def ended(self, number: str = "") -> bool:
        return self.fields(number).get("JobState") in (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
        )

    def metrics(self) -> list[dict[str, float]]:
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def logs(self) -> str:
        files = sorted(self.job_dir.parent.glob("*/*.out"))
        return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')}" for f in files)

    def show(self) -> None:
        """What the issue asks to see: the job's id, its nodes, the last metrics."""
        fields = self.fields()
        state = f"{fields.get('JobState')}, restarts {fields.get('Restarts')}"
        print(f"\njob {self.number} on {fields.get('NodeList')}: {state}")
        print(f"final metrics: {json.dumps(self.metrics()[-1])}")


@pytest.fixture(scope="session")
def kd_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rows = (ROOT / "assets" / "arithmetic" / "train.jsonl").read_text().splitlines()
    path = tmp_path_factory.mktemp("data") / "kd.jsonl"
    with path.open("w") as file:
        for row in map(json.loads, rows[:256]):
            file.write(json.dumps({"prompt": row["prompt"], "response": row["answer"]}) + "\n")
    yield f"data.train={path}"


def test_quickstart_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    job = Submitted(
        *(cluster, tmp_path, "--grace", "30", "--time", "00:10:00", "train.steps=2"),
        *("rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.max_response_tokens=16"),
        *("evaluation.every=0", "evaluation.before=false", "evaluation.after=false"),
        *("--then", "evaluate", "evaluation.samples=1", "evaluation.limit=8"),
    )
    try:
        followed = job.run("launch.status", "--follow", job.number)
        job.until(job.ended, "end of the job")
        job.show()
        assert job.fields()["JobState"] == "COMPLETED", job.logs()
        assert job.fields()["NodeList"] == "n[1-2]"
        assert followed.returncode == 0, followed.stderr
        assert "2 ranks: tensor 2" in followed.stdout, "--follow shows the run's own output"
        assert "\x1b" not in followed.stdout, "a rank took its log for a terminal"
        assert f"job {job.number}: done" in followed.stderr
        assert [line["step"] for line in job.metrics()] == [1, 2]
        assert (job.out / "checkpoints" / "step_00000002").is_dir()
        assert (job.out / "hf" / "config.json").exists()
        assert "group_size: 2" in (job.job_dir / "config.yaml").read_text()
        evaluation = job.numbers[1]
        job.until(lambda: job.ended(evaluation), "end of the evaluation")
        assert job.fields(evaluation)["JobState"] == "COMPLETED", job.logs()
        log = next(job.job_dir.parent.glob(f"quickstart.evaluate/log-*_{evaluation}_0.out"))
        assert '"eval/avg@1": ' in log.read_text(), "the student that the first job exported"
        _assert_no_secret(job)
    except BaseException:
        print(job.logs(), cluster.logs())
        raise


@pytest.mark.study
def test_training_on_one_node_and_sampling_on_the_other(cluster: Cluster, tmp_path: Path) -> None:
    job = Submitted(
        *(cluster, tmp_path, "--grace", "30", "--time", "00:10:00", "train.steps=3"),
        *("rollout.placement=separate", "rollout.ranks=1", "rollout.lag=1"),
        *("rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.max_response_tokens=16"),
        *("evaluation.every=0", "evaluation.before=false", "evaluation.after=false"),
    )
    try:
        job.until(job.ended, "end of the job")
        job.show()
        assert job.fields()["JobState"] == "COMPLETED", job.logs()
        assert job.fields()["NodeList"] == "n[1-2]"
        assert "vLLM on 1 ranks of its own" in job.logs()
        assert [line["step"] for line in job.metrics()] == [1, 2, 3]
        assert [line["staleness/steps"] for line in job.metrics()] == [0.0, 1.0, 1.0]
    except BaseException:
        print(job.logs(), cluster.logs())
        raise


def _assert_no_secret(job: Submitted) -> None:
    """HF_TOKEN was in the submitting shell, and reached the ranks by Slurm alone."""
    assert SECRET not in job.answer.stdout + job.answer.stderr
    experiment = job.job_dir.parent
    files = [path for top in (experiment, job.out) for path in top.rglob("*") if path.is_file()]
    assert any(path.name.startswith("log-") for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_job_goes_on_by_itself(cluster: Cluster, tmp_path: Path, kd_data: str) -> None:
    """SIGTERM to the steps, as Slurm sends it ahead of the time limit or at a preemption; then,
    in the job that came back, a rank that is killed. The job comes back once more and completes.
    """
    steps = 200
    job = Submitted(
        *(cluster, tmp_path, "--grace", "30", "--time", "00:10:00", kd_data, *KD_SETTINGS),
        *(f"train.steps={steps}", "checkpoint.every=0", *EVALUATION),
    )
    try:
        job.until(lambda: len(job.metrics()) >= 3, "third step")
        cluster.ask("scancel", "--signal=TERM", job.number)
        job.until(lambda: job.fields().get("Restarts") == "1", "restart")
        logs = job.logs()
        stopped = re.search(r"checkpoint is in \S+/step_(\d+)", logs)
        assert stopped and 3 <= int(stopped[1]) < steps, logs
        done = int(stopped[1])
        assert len(job.metrics()) == done, "saved after the step in which the signal came"

        job.until(lambda: len(job.metrics()) > done + 2, "step after the restart")
        os.kill(_a_rank(job), signal.SIGKILL)
        job.until(lambda: job.fields().get("Restarts") == "2", "second restart")
        after = job.fields(job.numbers[1])
        assert after["JobState"] == "PENDING", "a restart is no end for the job that comes after"
        assert after["Dependency"].startswith(f"afterok:{job.number}")
        cluster.ask("scancel", job.numbers[1])  # what it would do is the quickstart's test
        job.until(job.ended, "end of the job")
        job.show()
        assert job.fields()["JobState"] == "COMPLETED", job.logs()
        resumed = re.findall(r"resumed from \S+ after step (\d+)", job.logs())
        assert resumed == [str(done)] * 2, "the dead rank's part had saved nothing"
        assert [line["step"] for line in job.metrics()] == list(range(1, steps + 1))
        assert (job.out / "checkpoints" / f"step_{steps:08d}").is_dir()
        answer = job.run("launch.status", job.number)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert "done" in answer.stdout and "restarted 2 times" in answer.stdout
    except BaseException:
        print(job.logs(), cluster.logs())
        raise


def _a_rank(job: Submitted) -> int:
    """The process id of a Python that runs this job's configuration."""
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"scope_megatron" in words and os.fsencode(job.job_dir / "config.yaml") in words:
            return int(proc.name)
    raise AssertionError(f"no rank of job {job.number} runs here")


def test_wrong_setting_ends_the_job(cluster: Cluster, tmp_path: Path, kd_data: str) -> None:
    """The data goes missing while the job waits: exit code 2, and no second try."""
    data = tmp_path / "kd.jsonl"
    data.write_bytes(Path(kd_data.partition("=")[2]).read_bytes())
    cluster.ask("scontrol", "update", "PartitionName=test", "State=DOWN")
    try:
        job = Submitted(
            *(cluster, tmp_path, f"data.train={data}", *KD_SETTINGS, "train.steps=1"),
            *EVALUATION,
        )
        waiting = job.run("launch.status", job.number)
        assert "waiting" in waiting.stdout and waiting.returncode == 0, waiting
        data.unlink()
    finally:
        cluster.ask("scontrol", "update", "PartitionName=test", "State=UP")
    job.until(job.ended, "end of the job")
    answer = job.run("launch.status", job.number)
    assert answer.returncode == 1 and "failed (exit 2:0" in answer.stdout, answer
    assert "error: data.train:" in job.logs() and "not restarted" in job.logs()
    assert job.fields()["Restarts"] == "0"
    cancelled = lambda: job.fields(job.numbers[1])["JobState"] == "CANCELLED"  # noqa: E731
    job.until(cancelled, "end of the job that needed the first one")
