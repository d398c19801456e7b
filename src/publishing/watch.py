"""Updates of a comparison's page while its runs train, and a server for browsers that may not read from disk."""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from comparison.progress import under_way
from comparison.results import Comparison
from publishing.page import PLOTLY, render_update
from publishing.publish import stem_of, write_page
from runtime.console import say
from runtime.files import write_text

EVERY = 5.0  # seconds between two readings of the runs


def watch(read: Callable[[], Comparison], folder: Path, filters: Sequence[str] = ()) -> None:
    """Write the page again and again until all runs of the folder's sweep have ended.

    The page loads `comparison.live.js` every few seconds, which calls its function `update`.
    """
    live = folder / f"{stem_of(filters)}.live.js"
    try:
        while progress := under_way(folder):
            started = time.monotonic()
            comparison = read()
            write_text(live, render_update(comparison, folder))
            write_page(comparison, folder, filters, is_watched=True)
            say(f"{folder}: {progress}")
            time.sleep(max(EVERY, 4 * (time.monotonic() - started)))  # reading thousands of runs takes seconds
        write_text(live, render_update(read(), folder))  # for a page that is open
        time.sleep(EVERY)
    finally:
        live.unlink(missing_ok=True)


def serve(folder: Path, filters: Sequence[str] = ()) -> None:
    """Serve the folder to this machine alone, read only, until the process ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(PageHandler, directory=str(folder.resolve())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"http://127.0.0.1:{server.server_port}/{quote(folder.resolve().name)}/{quote(stem_of(filters))}.html")


class PageHandler(SimpleHTTPRequestHandler):
    """A request handler for the files of /FOLDER/… and for Plotly's script beside the folder; it reads nothing else."""

    def translate_path(self, path: str) -> str:
        """Map a URL's path to a file; a path that leaves the folder is mapped to one that does not exist."""
        folder = Path(self.directory)
        wanted = unquote(urlsplit(path).path).lstrip("/")
        if wanted == PLOTLY:
            return str(folder.parent / PLOTLY)
        first, _, inside = wanted.partition("/")
        file = (folder / inside).resolve()
        is_inside = first == folder.name and inside and file.is_relative_to(folder) and file.is_file()
        return str(file) if is_inside else str(folder / "\0")

    def send_head(self):  # type: ignore[no-untyped-def]  # the library's own type is not public
        if "\0" in self.translate_path(self.path):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for each request."""
