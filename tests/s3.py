"""A server that speaks S3, on loopback; one that stumbles now and then, too."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BUCKET = "bucket"
Answer = Callable[..., Any]


@dataclass
class Store:
    """What the tests know of the server."""

    url: str
    failures: list[str] = field(default_factory=list)
    """Requests that it failed on purpose."""
    share: float = 0.0
    """Of the requests that fail."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[Store]:
    """A server with one empty bucket."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = Store("")
    inner = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, _Stumbling(inner, store), threaded=True)
    server.log_startup = lambda: None  # type: ignore[method-assign]
    store.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Stumbling:
    """Answers some requests by an error, before or after they took effect, or cuts the answer."""

    def __init__(self, inner: Answer, store: Store) -> None:
        self.inner, self.store = inner, store
        self.random, self.lock = random.Random(0), threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        with self.lock:
            self.store.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            fails = self.random.random() < self.store.share
            ways = ("before", "after", "cut") if self.store.share < 1.0 else ("before",)
            how = self.random.choice(ways) if fails else ""
            if fails:
                self.store.failures.append(f"{how}: {self.store.requests[-1]}")
        if how in ("before", "after"):
            if how == "after":
                list(self.inner(environ, lambda *_: None))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.inner(environ, start_response))
        return [body[: len(body) // 2] if how else body]
