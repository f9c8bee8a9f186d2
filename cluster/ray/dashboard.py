"""Ray's dashboard over HTTP: what a cluster is, and what became of a job. Needs neither Ray's processes nor its import.

Whoever reaches a dashboard can run code on its cluster, so a token is required wherever it isn't this machine's own.
The token comes from where Ray has it (RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token) and goes into
the request's header: into no argv, no record, no message. Every request has a time limit of its own.
"""

import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.errors import UserError

DEFAULT = "http://127.0.0.1:8265"
ANSWER_S = 10.0  # for an answer
REACH_S = 5.0  # for a connection
RAY = (2, 60)
"""The Ray that Luban is made for: what it uses of Ray Train is not the same in others."""
MODES = ("token", "disabled")


class Dashboard:
    """Of one cluster."""

    def __init__(self, address: str):
        """
        Args:
            address: such as http://10.0.0.1:8265, or 10.0.0.1:8265; empty: of RAY_ADDRESS, or this machine's.

        Raises:
            UserError: it is no address.
        """
        self.address = _address(address or os.environ.get("RAY_ADDRESS") or DEFAULT)

    @property
    def headers(self) -> dict[str, str]:
        """Of each request; holds the token. Raises UserError where there is none and one is needed."""
        return _headers(self.address)

    def get(self, path: str, missing: Any = None) -> Any:
        """The JSON at a path; `missing` where there is none. Raises UserError where the cluster doesn't answer."""
        return self._ask("GET", path, missing)

    def post(self, path: str) -> Any:
        """Have something done."""
        return self._ask("POST", path, None)

    def check_version(self) -> None:
        """Raises UserError where it is out of reach, refuses the token, or runs another Ray."""
        found = self.get("/api/version")
        version = str(found.get("ray_version", "")) if isinstance(found, dict) else ""
        if not version:
            raise UserError(f"{self.address} answers, but not as a Ray dashboard: is it another server's port?")
        if tuple(version.split(".")[:2]) != tuple(map(str, RAY)):
            ours = ".".join(map(str, RAY))
            raise UserError(f"the cluster at {self.address} runs Ray {version}, and Luban needs Ray {ours} there")

    def is_open(self) -> bool:
        """Whether another machine's cluster takes jobs from anybody: it answers without a token, too."""
        if _is_loopback(self.address):
            return False
        answer = self._request("GET", "/api/version", {})
        return answer.status_code == 200

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is there: CPU, GPU, memory in bytes."""
        found = self.get("/api/v0/nodes?limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE", {})
        nodes = found.get("data", {}).get("result", {}).get("result", [])
        return [node["resources_total"] for node in nodes if node.get("state") == "ALIVE"]

    def grows(self) -> bool:
        """Whether the cluster has an autoscaler that may bring up nodes; true where it can't be told."""
        status = (self.get("/api/cluster_status", {}).get("data") or {}).get("clusterStatus") or {}
        kinds = (status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
        return not kinds or not all(kind == f"node_{node}" for node, kind in kinds.items())

    def job(self, id: str) -> dict[str, Any] | None:
        """What is known of a job: status, message and more; None where it is unknown."""
        return self.get(f"/api/jobs/{id}")

    def stop_job(self, id: str) -> None:
        """Ask a job to stop."""
        self.post(f"/api/jobs/{id}/stop")

    def _ask(self, method: str, path: str, missing: Any) -> Any:
        answer = self._request(method, path, self.headers)
        if answer.status_code in (401, 403):
            raise UserError(self._refused(answer.status_code))
        if answer.status_code == 404:
            return missing
        with suppress(ValueError):
            if answer.ok:
                return answer.json()
        raise UserError(f"{self.address}{path} answered {answer.status_code}: {answer.text[:200]!r}")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> Any:
        import requests

        with requests.Session() as session:
            session.trust_env = False  # a netrc would replace the token, a proxy would see it
            try:
                return session.request(method, self.address + path, headers=headers, timeout=(REACH_S, ANSWER_S))
            except requests.RequestException as error:
                raise UserError(f"no Ray dashboard answers at {self.address} ({_reason(error)})") from None

    def _refused(self, status: int) -> str:
        if "Authorization" not in self.headers:
            return (
                f"the Ray cluster at {self.address} asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                "RAY_AUTH_TOKEN_PATH, or write it to ~/.ray/auth_token)"
            )
        return (
            f"the Ray cluster at {self.address} refuses the token ({status}): it is of another cluster; it was taken "
            f"from {_token()[1]}"
        )


def _address(given: str) -> str:
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme == "ray":
        raise UserError(f"{given} is an address of Ray Client; jobs go to the dashboard, such as http://HOST:8265")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UserError(f"{given} is no address of a Ray dashboard: it is like http://HOST:8265")
    if parts.username or parts.password:
        raise UserError("a Ray address holds no user or password: the token comes from RAY_AUTH_TOKEN")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port == 6379:
        raise UserError(f"{given} is the port of Ray's own nodes; jobs go to the dashboard, such as http://{host}:8265")
    return f"{parts.scheme}://{host}" + (f":{port}" if port else ":8265" if parts.scheme == "http" else "")


def _headers(address: str) -> dict[str, str]:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode and mode not in MODES:
        raise UserError(f"RAY_AUTH_MODE is {mode!r}: it is one of {', '.join(MODES)}")
    token, _ = _token()
    near = _is_loopback(address)
    if mode == "disabled" or (near and not mode and not token):
        if not near:
            raise UserError(
                f"RAY_AUTH_MODE is {mode or 'not set'}, and {address} is not this machine: whoever reaches a cluster "
                "without a token can run code there. Start it with RAY_AUTH_MODE=token, and set it here, too"
            )
        return {}
    if not token:
        raise UserError(
            f"there is no token for the Ray cluster at {address}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, or write "
            "it to ~/.ray/auth_token"
        )
    if any(character.isspace() or not character.isprintable() for character in token):
        raise UserError(f"the token of {_token()[1]} has blanks or control characters in it")
    return {"Authorization": f"Bearer {token}"}


def _token() -> tuple[str, str]:
    """(the token, or nothing; where it is from)."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip(), str(path)
    except (OSError, UnicodeDecodeError):
        if given:
            raise UserError(f"RAY_AUTH_TOKEN_PATH is {given}, and there is no token to read") from None
        return "", str(path)


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Exception) -> str:
    words = str(error)
    for known in ("Connection refused", "timed out", "Name or service not known", "No route to host", "Temporary fail"):
        if known.lower() in words.lower():
            return known.lower()
    return type(error).__name__
