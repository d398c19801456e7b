"""A stand-in for W&B's server, in memory on this machine: sweeps, their agents, runs and the public API.

It assigns the points of a grid in order, and keeps what the real client sends.
"""

import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "team"


class WandbServer(ThreadingHTTPServer):
    """A server that answers within its context. Each method with a capital is the GraphQL operation of that name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sweeps: dict[str, dict[str, Any]] = {}  # id → config, and the points that no agent has had yet
        self.runs: dict[str, dict[str, Any]] = {}  # by id
        self.to_stop: set[str] = set()  # runs that their agent is told to stop, once they have logged something
        self.lock = threading.Lock()

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    @property
    def environment(self) -> dict[str, str]:
        """Make the environment in which the client uses this server, and sends metrics every second."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online", "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }  # fmt: skip

    def run(self, name: str) -> dict[str, Any]:
        fresh: dict[str, Any] = {"name": name, "state": "pending", "config": {}, "summary": {}, "history": {}}
        return self.runs.setdefault(name, fresh)

    def Viewer(self, **_: Any) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": ENTITY, "username": "me", "flags": "{}", "teams": {"edges": []}}}

    GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, **_: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def UpsertSweep(self, config: str, projectName: str, **_: Any) -> dict[str, Any]:
        parameters = yaml.safe_load(config)["parameters"]
        values = [parameter["values"] for parameter in parameters.values()]
        points = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = {"config": config, "points": points}
        sweep = {"name": name, "project": project(projectName)}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def SweepWithRuns(self, sweep: str, **_: Any) -> dict[str, Any]:
        return {"project": {"sweep": {"id": sweep, "config": self.sweeps[sweep]["config"], "runs": {"edges": []}}}}

    def CreateAgent(self, sweep: str, **_: Any) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": sweep}}}

    def Heartbeat(self, id: str, runState: str, **_: Any) -> dict[str, Any]:
        running, sweep = json.loads(runState), self.sweeps[id]
        commands: list[dict[str, Any]] = [
            {"type": "stop", "run_id": name} for name in self.to_stop & set(running) if self.runs[name]["history"]
        ]
        if not running and not sweep["points"]:
            commands = [{"type": "exit"}]
        elif not running:
            run = self.run(f"{id}-{len(sweep['points'])}")
            run |= {"sweep": id, "config": {key: {"value": value} for key, value in sweep["points"].pop(0).items()}}
            program = yaml.safe_load(sweep["config"])["program"]
            commands = [{"type": "run", "run_id": run["name"], "args": run["config"], "program": program}]
        return {"agentHeartbeat": {"agent": {"id": id}, "commands": json.dumps(commands)}}

    def RunResumeStatus(self, name: str, **_: Any) -> dict[str, Any]:
        if name not in self.runs:
            return {"model": None}
        run = self.runs[name]
        begun = {} if run["state"] == "pending" else {"t": 1}  # a run that only waits for its process is no resumed one
        bucket = {
            "id": name, "name": name, "config": json.dumps(run["config"]), "wandbConfig": json.dumps(begun),
            "summaryMetrics": "{}", "historyTail": "[]", "eventsTail": "[]", "historyLineCount": len(run["history"]),
            "eventsLineCount": 0, "logLineCount": 0,
        }  # fmt: skip
        return {"model": {"bucket": bucket}}

    def UpsertBucket(self, name: str, **arguments: Any) -> dict[str, Any]:
        run = self.run(name)
        run["state"] = "running"
        run["config"] |= json.loads(arguments.pop("config", None) or "{}")
        run |= {key: value for key, value in arguments.items() if value is not None}
        bucket = {"id": name, "name": name, "project": project(run["project"]), "sweepName": run.get("sweep")}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        places = [{"name": name, "uploadUrl": f"{self.environment['WANDB_BASE_URL']}/storage"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def Runs(self, project: str, filters: str, **_: Any) -> dict[str, Any]:
        here = [run for run in self.runs.values() if run.get("project") == project]
        if not here:
            return {"project": None}
        wanted = {key: value for choice in json.loads(filters).get("$or", []) for key, value in choice.items()}
        matching = [
            run
            for run in here
            if not wanted or wanted["sweep"] == run.get("sweep") or wanted["group"] == run["groupName"]
        ]
        edges = [
            {
                "cursor": run["name"],
                "node": {
                    "id": run["name"], "name": run["name"], "projectId": "1", "state": run["state"],
                    "config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"]),
                },
            }
            for run in matching
        ]  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"runCount": len(matching), "runs": {"edges": edges, "pageInfo": page}}}

    def RunFullHistory(self, name: str, **_: Any) -> dict[str, Any]:
        return {"project": {"run": {"history": list(self.runs[name]["history"].values())}}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Receive what a run logs, and its end."""
        run, files = self.run(name), sent.get("files") or {}
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        run["history"] |= dict(enumerate(history["content"], history["offset"]))
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run["summary"] = json.loads(line)
        if sent.get("complete"):
            run |= {"state": "failed" if sent["exitcode"] else "finished", "exitcode": sent["exitcode"]}


def project(name: str) -> dict[str, Any]:
    return {"id": "1", "name": name, "entity": {"id": "1", "name": ENTITY}}


class Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer: dict[str, Any] = {}
        with self.server.lock:
            if self.path == "/graphql":
                asked = json.loads(content)
                (name,) = re.findall(r"^\s*(?:#graphql\s*)?(?:query|mutation)\s+(\w+)", asked["query"])
                operation = getattr(self.server, name, None)
                answer = {"errors": [{"message": f"there is no {name} here"}]}
                if operation:
                    answer = {"data": operation(**asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                self.server.stream(self.path.split("/")[-2], json.loads(content))
        self.reply(answer)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply({})

    def reply(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing on the terminal."""
