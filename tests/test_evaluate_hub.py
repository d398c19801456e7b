"""Tests of published weights that an evaluation downloads, from a server on this machine."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from safetensors.torch import save_file

from config.errors import ConfigError
from test_evaluate import TINY_IMAGENET, evaluate, photographs  # noqa: F401 (a fixture)
from test_weights import by_timm, randomized


class Hub(BaseHTTPRequestHandler):
    """The answers that huggingface_hub needs: a file's commit, tag, size and content."""

    content: bytes
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        there = self.path == "/timm/convmixer_768_32.in1k/resolve/main/model.safetensors"
        self.send_response(200 if there else 404)
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        self.send_header("ETag", '"e0812272"')
        self.send_header("Content-Length", str(len(self.content) if there else 0))
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    save_file(randomized(by_timm(*TINY_IMAGENET, "relu")).state_dict(), tmp_path / "served.safetensors")
    handler = type("Handler", (Hub,), {"content": (tmp_path / "served.safetensors").read_bytes(), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    # As HF_ENDPOINT and HF_HUB_CACHE set them when the client is imported.
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    moved = template.replace(huggingface_hub.constants.ENDPOINT, endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", moved)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_published_weights_come_from_the_hub_once(hub: type[Hub], photographs: Path, tmp_path: Path) -> None:  # noqa: F811
    overrides = ("checkpoint=convmixer_768_32", "data=image_folder", f"data.root={photographs}", "data.num_workers=0")
    reports = [evaluate(tmp_path / name, *overrides) for name in ("one", "two")]
    assert reports[0]["test/loss"] == reports[1]["test/loss"]
    assert reports[0]["architecture"]["activation"] == "relu"
    assert hub.asked.count("GET /timm/convmixer_768_32.in1k/resolve/main/model.safetensors") == 1
    with pytest.raises(ConfigError, match=r"checkpoint=convmixer_1536_20: timm/convmixer_1536_20\.in1k") as raised:
        evaluate(tmp_path / "three", "checkpoint=convmixer_1536_20")
    assert "\n" not in str(raised.value)
