"""What is submitted to Ray, where it is submitted to, and what is refused; a dashboard is a small server here."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import on_ray, submission
from cluster.job import Job
from cluster.launchers import launcher, scheduler
from cluster.on_ray import OnRay, last_word, shortage
from cluster.ray.dashboard import Dashboard
from cluster.ray.driver import await_submission
from cluster.ray.metrics import figures
from data.errors import UserError

JOB = Job(
    argv=("python", "-P", "-m", "trainer", "/runs/x"), run=Path("/runs/x"), steps=9, nodes=2, ranks_per_node=2,
    min_ranks=1, cpus_per_rank=8, gpus_per_rank=1, memory_gb=64, environment=(("OMP_NUM_THREADS", "8"),),
    takeover=True,
)  # fmt: skip
GOLDEN = """\
{
  "address": "http://127.0.0.1:8265",
  "submission_id": "JOB",
  "entrypoint": "python -P -m cluster.ray.driver /runs/x --job JOB --takeover",
  "runtime_env": {
    "py_modules": [
      "CODE/data",
      "CODE/trainer",
      "CODE/cluster"
    ],
    "excludes": [
      "__pycache__"
    ],
    "env_vars": {
      "RAY_JOB_STOP_WAIT_TIME_S": "900"
    }
  },
  "metadata": {
    "run": "/runs/x",
    "ranks": "1 to 4",
    "per_rank": "8 CPU, 1 GPU, 64 GB"
  }
}
"""
TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of Ray's is inherited, and there is no token in the home."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def dashboard() -> Iterator[ThreadingHTTPServer]:
    """Answers each path with what `answers` holds for it, (status, text), and notes the headers of requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
            status, text = self.server.answers.get(self.path.split("?")[0], (404, ""))  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers = {"/api/version": (200, '{"ray_version": "2.60.1"}')}  # type: ignore[attr-defined]
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def at(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_render_is_exactly_what_is_submitted() -> None:
    text = OnRay().render(JOB)
    assert text.replace(str(Path(on_ray.__file__).parents[1]), "CODE") == GOLDEN
    assert {"address": "http://127.0.0.1:8265", **on_ray.request(JOB, "JOB")} == json.loads(text)


def test_what_nodes_lack_is_installed_by_the_runtime_environment() -> None:
    named = on_ray.request(replace(JOB, pip=("sentencepiece==0.2.*", "xxhash")), "JOB")["runtime_env"]
    assert named.pop("pip") == ["sentencepiece==0.2.*", "xxhash"]
    assert named == on_ray.request(JOB, "JOB")["runtime_env"]  # nothing otherwise


def test_a_dry_run_asks_nobody_and_needs_no_token() -> None:
    assert '"address": "http://10.1.2.3:8265"' in OnRay("10.1.2.3").render(JOB)


@pytest.mark.parametrize(
    ("given", "is_at"),
    [
        ("", "http://127.0.0.1:8265"),
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("http://[::1]:8265/", "http://[::1]:8265"),
    ],
)
def test_an_address_may_be_short(given: str, is_at: str) -> None:
    assert Dashboard(given).address == is_at


def test_without_an_address_it_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert Dashboard("").address == "http://head:8265"
    assert Dashboard("http://other:8265").address == "http://other:8265"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ray://head:10001", "Ray Client; jobs go to the dashboard"),
        ("head:6379", "port of Ray's own nodes"),
        ("ftp://head", "no address of a Ray dashboard"),
        ("http://head:8265/jobs", "no address of a Ray dashboard"),
        ("http://head:port", "no address of a Ray dashboard"),
        ("http://me:secret@head", "holds no user or password"),
    ],
)
def test_a_bad_address_is_refused(given: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        launcher(f"ray={given}")
    assert "me:secret" not in str(refused.value)


def test_another_machine_s_cluster_needs_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no token for the Ray cluster at http://10.1.2.3:8265"):
        OnRay("10.1.2.3").check(JOB)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="whoever reaches a cluster without a token can run code there"):
        OnRay("10.1.2.3").check(JOB)
    monkeypatch.setenv("RAY_AUTH_MODE", "sometimes")
    with pytest.raises(UserError, match="RAY_AUTH_MODE is 'sometimes': it is one of token, disabled"):
        OnRay("10.1.2.3").check(JOB)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH is .*/none, and there is no token to read"):
        OnRay("10.1.2.3").check(JOB)


@pytest.mark.parametrize("place", ["variable", "path", "home"])
def test_the_token_travels_in_the_header_from_wherever_ray_has_it(
    place: str, dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    else:
        file = tmp_path / (".ray/auth_token" if place == "home" else "token")
        file.parent.mkdir(exist_ok=True)
        file.write_text(TOKEN + "\n")
        if place == "path":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password mine\n")
    Dashboard(at(dashboard)).check_version()
    assert dashboard.seen[0]["Authorization"] == f"Bearer {TOKEN}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "token", "says"),
    [
        ((403, "Forbidden"), TOKEN, r"refuses the token \(403\).*taken from RAY_AUTH_TOKEN"),
        ((401, "Unauthorized"), "", "asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ((404, ""), TOKEN, "answers, but not as a Ray dashboard"),
        ((200, "<html>"), TOKEN, "answered 200: '<html>'"),
        ((200, "[]"), TOKEN, "answers, but not as a Ray dashboard"),
        ((500, "oh"), TOKEN, "answered 500: 'oh'"),
        ((200, '{"ray_version": "2.9.0"}'), TOKEN, "runs Ray 2.9.0, and Luban needs Ray 2.60 there"),
    ],
)
def test_a_cluster_that_will_not_do_is_one_clear_error(
    answer: tuple[int, str], token: str, says: str, dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.answers["/api/version"] = answer  # type: ignore[attr-defined]
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(UserError, match=says) as refused:
        OnRay(at(dashboard)).check(JOB)
    assert TOKEN not in str(refused.value)


def test_another_machine_s_cluster_that_runs_code_for_anybody_is_refused(
    dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nodes(dashboard, [{"CPU": 64.0, "GPU": 8.0, "memory": 512e9}], {"1": "node_1"})
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr("cluster.ray.dashboard._is_loopback", lambda address: False)
    with pytest.raises(UserError, match="runs code for anybody, with or without a token"):
        OnRay(at(dashboard)).check(JOB)
    assert "Authorization" not in dashboard.seen[1]  # type: ignore[attr-defined]


def test_a_cluster_out_of_reach_is_one_clear_error_in_seconds(
    dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no Ray dashboard answers at http://127.0.0.1:1 \(connection refused\)"):
        OnRay("127.0.0.1:1").check(JOB)
    monkeypatch.setattr("cluster.ray.dashboard.ANSWER_S", 0.2)
    silent = threading.Event()
    monkeypatch.setattr(dashboard.RequestHandlerClass, "do_GET", lambda self: silent.wait(10))
    with pytest.raises(UserError, match=r"no Ray dashboard answers at .* \(timed out\)"):
        OnRay(at(dashboard)).check(JOB)
    silent.set()


def answer_nodes(server: ThreadingHTTPServer, nodes: list[dict], kinds: dict[str, str]) -> None:
    listed = [{"state": "ALIVE", "resources_total": node} for node in nodes]
    server.answers |= {  # type: ignore[attr-defined]
        "/api/v0/nodes": (200, json.dumps({"data": {"result": {"result": listed}}})),
        "/api/cluster_status": (
            200, json.dumps({"data": {"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": kinds}}}}),
        ),
    }  # fmt: skip


def test_more_than_a_cluster_has_is_refused_unless_it_can_grow(
    dashboard: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_nodes(dashboard, [{"CPU": 64.0, "memory": 512e9}], {"1": "node_1"})
    with pytest.raises(UserError, match="has no node for a rank of 1 GPUs: the most that one has is 0"):
        OnRay(at(dashboard)).check(JOB)
    answer_nodes(dashboard, [{"CPU": 64.0, "memory": 512e9}], {"10.0.0.1": "ray.head.default"})
    OnRay(at(dashboard)).check(JOB)
    assert "its autoscaler is asked for more" in capsys.readouterr().out
    answer_nodes(dashboard, [{"CPU": 64.0, "memory": 512e9, "GPU": 8.0}], {"1": "node_1"})
    OnRay(at(dashboard)).check(JOB)
    assert not capsys.readouterr().out


def test_room_is_counted_node_by_node() -> None:
    node = {"CPU": 20.0, "GPU": 8.0, "memory": 512e9}
    assert shortage(JOB, [node]) is None
    four = Job(**{**vars(JOB), "min_ranks": 4})
    assert "has room for 2 of 4 ranks: 1 nodes with 8 GPUs" in str(shortage(four, [node]))
    assert shortage(four, [node, node]) is None
    assert "no node for a rank of 8 CPUs: the most that one has is 4" in str(shortage(JOB, [node | {"CPU": 4.0}]))
    assert "no node for a rank of 64 GB" in str(shortage(JOB, [node | {"memory": 32e9}]))
    assert shortage(JOB, []) is not None


def test_what_a_scheduler_says_of_a_job(dashboard: ThreadingHTTPServer) -> None:
    there = scheduler(f"ray={at(dashboard)}")
    for status, state in (("PENDING", "queued"), ("RUNNING", "running"), ("SUCCEEDED", None), ("STOPPED", None)):
        dashboard.answers["/api/jobs/a"] = (200, json.dumps({"status": status}))  # type: ignore[attr-defined]
        assert there.state("a") == state
        assert there.reason("a") is None
    assert there.state("unknown") is None
    failed = {"status": "FAILED", "driver_exit_code": 2, "message": "exit code 2, last logs:\nluban: no room\n"}
    dashboard.answers["/api/jobs/a"] = (200, json.dumps(failed))  # type: ignore[attr-defined]
    assert there.reason("a") == "no room"
    stopped = failed | {"driver_exit_code": 75}
    dashboard.answers["/api/jobs/a"] = (200, json.dumps(stopped))  # type: ignore[attr-defined]
    assert there.reason("a") is None


def test_the_last_word_of_a_failed_job() -> None:
    assert last_word("Job failed\nTraceback\nImportError: no torch\n") == "ImportError: no torch"
    assert last_word("") == "Ray gives no reason"


def test_a_driver_begins_only_where_the_run_s_folder_names_its_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="where Ray runs the driver, doesn't see the run's folder"):
        await_submission(tmp_path / "x", "luban-x-1", patience_s=0.3)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    threading.Timer(0.3, submission.write, (tmp_path, "ray=http://h", "luban-x-1")).start()
    await_submission(tmp_path, "luban-x-1", patience_s=20)
    with pytest.raises(UserError, match="was submitted again as luban-x-1: this job, luban-x-0, is void"):
        await_submission(tmp_path, "luban-x-0", patience_s=0.3)


def test_figures_for_ray_have_names_that_prometheus_takes() -> None:
    lines = [
        {"line": 0, "kind": "train", "time": 1.0, "train/step": 1, "train/loss": 3.0, "text": "no", "train/ok": True},
        {"line": 1, "kind": "train", "time": 2.0, "train/step": 2, "train/loss": 2.0},
        {"line": 2, "kind": "evaluation", "time": 2.0, "evaluation/valid/loss": 2.5},
    ]
    assert figures(lines) == {"train_step": 2.0, "train_loss": 2.0, "evaluation_valid_loss": 2.5}
