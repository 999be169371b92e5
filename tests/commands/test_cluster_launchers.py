"""What Slurm and Ray are asked for, and how their failures are reported, with stand-ins for their packages."""

import contextlib
import sys
import types

import pytest
from hydra.core.utils import JobReturn, JobStatus

from mergeability.commands.job_records import KILLED
from mergeability.commands.launchers import clusters
from mergeability.commands.launchers.clusters import Ray, SubmititSlurm
from mergeability.commands.launchers.jobs import Job, lost
from mergeability.errors import UserError

DONE = JobReturn(status=JobStatus.COMPLETED)


def modules(monkeypatch, **content):
    """Import stand-ins; `__` stands for the dots in their names."""
    for name, members in content.items():
        made = types.ModuleType(name.replace("__", "."))
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, made.__name__, made)


def jobs(count):
    return [Job({}, print, None, None, "/", {}) for _ in range(count)]


class UncompletedJobError(RuntimeError):
    """As submitit's: a job ended without a result."""


class FailedSubmissionError(RuntimeError):
    """As submitit's: sbatch refused a job."""


@pytest.fixture
def slurm(monkeypatch):
    """Submitit on a machine with Slurm: what it was asked for, and the results that it gives."""
    asked = types.SimpleNamespace(parameters={}, jobs=[], results=[], error=None)

    class Submitted:
        paths = types.SimpleNamespace(stderr="log/1.err")

        def __init__(self, result):
            self.result = result

        def results(self):
            if isinstance(self.result, Exception):
                raise self.result
            return [self.result]

    class AutoExecutor:
        def __init__(self, **options):
            asked.parameters |= options

        def update_parameters(self, **options):
            asked.parameters |= options

        @contextlib.contextmanager
        def batch(self):
            yield
            if asked.error is not None:
                raise asked.error

        def submit(self, job):
            asked.jobs.append(job)
            return Submitted(asked.results[len(asked.jobs) - 1])

    errors = {"UncompletedJobError": UncompletedJobError, "FailedSubmissionError": FailedSubmissionError}
    modules(
        monkeypatch, submitit={"AutoExecutor": AutoExecutor}, submitit__core={}, submitit__core__utils=errors
    )
    monkeypatch.setattr(clusters.shutil, "which", lambda name: f"/usr/bin/{name}")
    return asked


def test_slurm_is_asked_for_threads_gpus_and_the_options_of_the_launcher(slurm):
    slurm.results = [DONE, DONE]
    options = {"timeout_min": 60, "partition": "gpu", "account": None, "mem_gb": 8}
    launcher = SubmititSlurm("folder", max_num_timeout=2, n_jobs=4, threads=3, gpus=1, **options)
    assert launcher.run_all(jobs(2)) == [DONE, DONE]
    assert slurm.parameters == {
        "folder": "folder",
        "cluster": "slurm",
        "slurm_max_num_timeout": 2,
        "cpus_per_task": 3,
        "gpus_per_node": 1,
        "timeout_min": 60,
        "mem_gb": 8,
        "slurm_partition": "gpu",
        "slurm_array_parallelism": 4,
    }
    assert [job.environment["OMP_NUM_THREADS"] for job in slurm.jobs] == ["3", "3"]


def test_a_slurm_job_without_a_result_is_a_failure_and_the_others_are_kept(slurm):
    no_output = UncompletedJobError("Job 1 has not produced any output (state: FAILED)")
    slurm.results = [DONE, no_output, UncompletedJobError("Traceback\n  line\nslurmstepd: oom_kill\n---")]
    ended = SubmititSlurm("folder").run_all(jobs(3))
    assert ended[0] is DONE
    assert [str(one._return_value) for one in ended[1:]] == [
        KILLED,
        "slurmstepd: oom_kill (its log: log/1.err)",
    ]
    assert {one.status for one in ended[1:]} == {JobStatus.FAILED}
    assert slurm.parameters["cpus_per_task"] == 1


def test_what_slurm_refuses_is_one_sentence(slurm, monkeypatch):
    slurm.results, slurm.error = [DONE], FailedSubmissionError("sbatch: error:\n invalid partition")
    with pytest.raises(UserError, match=r"^Slurm rejected the jobs: sbatch: error: +invalid partition\.$"):
        SubmititSlurm("folder").run_all(jobs(1))
    monkeypatch.setattr(clusters.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="sbatch and srun, which are not installed"):
        SubmititSlurm("folder").run_all(jobs(1))


class RayError(Exception):
    """As Ray's: a task failed."""


class WorkerCrashedError(RayError):
    """As Ray's: a worker died."""


@pytest.fixture
def ray(monkeypatch):
    """Ray with two nodes of four CPUs: what it was asked for, and the results that it gives."""
    asked = types.SimpleNamespace(started=None, options={}, jobs=[], results=[], nodes=[4, 4])

    def remote(**options):
        asked.options |= options

        def task(function):
            assert function(lambda: "called") == "called"
            return types.SimpleNamespace(remote=lambda job: asked.jobs.append(job) or len(asked.jobs) - 1)

        return task

    def get(place):
        if isinstance(asked.results[place], Exception):
            raise asked.results[place]
        return asked.results[place]

    def nodes():
        alive = [{"Alive": True, "Resources": {"CPU": count}} for count in asked.nodes]
        return [*alive, {"Alive": False, "Resources": {"CPU": 64}}]

    modules(
        monkeypatch,
        ray={
            "remote": remote,
            "get": get,
            "nodes": nodes,
            "is_initialized": lambda: asked.started is not None,
            "cluster_resources": lambda: {"CPU": float(sum(asked.nodes))},
            "shutdown": lambda: None,
        },
        ray__exceptions={"RayError": RayError, "WorkerCrashedError": WorkerCrashedError},
        hydra_plugins={},
        hydra_plugins__hydra_ray_launcher={},
        hydra_plugins__hydra_ray_launcher___launcher_util={
            "start_ray": lambda options: setattr(asked, "started", dict(options))
        },
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(clusters, "cores", lambda: 8)
    monkeypatch.setattr(clusters, "visible_devices", list)
    return asked


def launcher(**options):
    made = Ray(**options)
    made.ledger = types.SimpleNamespace(closing=contextlib.ExitStack())
    return made


def test_ray_divides_its_cpus_among_the_jobs(ray):
    ray.results = [DONE, WorkerCrashedError("died"), RayError("no\nnode")]
    ended = launcher(remote={"resources": {"big": 1}}).run_all(jobs(3))
    assert ray.started == {
        **{"address": "local", "num_cpus": 8, "num_gpus": 0},
        **{"include_dashboard": False, "log_to_driver": False},
    }
    # Eight CPUs for three jobs, and no job runs on two nodes.
    assert ray.options == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0, "resources": {"big": 1}}
    assert [job.environment["OMP_NUM_THREADS"] for job in ray.jobs] == ["2"] * 3
    assert ended[0] is DONE
    assert [str(one._return_value) for one in ended[1:]] == [KILLED, "Ray: no node"]


def test_a_cluster_without_cpus_is_refused(ray):
    ray.nodes = []
    with pytest.raises(UserError, match="has no CPUs"):
        launcher().run_all(jobs(1))


def test_ray_connects_to_an_address_that_answers(ray, monkeypatch):
    asked = []
    monkeypatch.setattr(clusters, "check_answer", lambda *words: asked.append(words[:2]))
    ray.results = [DONE]
    launcher(address="head:6379", init={"namespace": "x"}).run_all(jobs(1))
    assert asked == [("head:6379", "hydra.launcher.address")]
    assert ray.started == {"address": "head:6379", "log_to_driver": False, "namespace": "x"}


@pytest.mark.parametrize(("n_jobs", "cpus"), [(None, 8), (-1, 8), (3, 8), (12, 12)])
def test_a_local_ray_has_a_cpu_for_each_job_that_is_asked_for(ray, n_jobs, cpus):
    ray.results = [DONE]
    launcher(n_jobs=n_jobs).run_all(jobs(1))
    assert ray.started["num_cpus"] == cpus


def test_the_last_line_of_a_log_says_why_a_job_was_lost():
    assert lost(RuntimeError("a\nb\n -- "), "x.err") == "b (its log: x.err)"
