"""A server that speaks S3, on loopback; one that stumbles now and then, too."""

from __future__ import annotations

import random
import threading
from collections import Counter
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
    streaks: Counter[str] = field(default_factory=Counter)
    """How often each request has failed in a row."""
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def heal(self) -> None:
        """As new, but for what is stored: each test meets the same failures."""
        self.share, self.random = 0.0, random.Random(0)
        self.failures.clear()
        self.streaks.clear()

    def how_to_fail(self, request: str) -> str:
        """ "before", "after" or "cut"; empty for a good answer.

        Where it only stumbles, nothing fails so often in a row that asking again is given up.
        """
        down = self.share >= 1.0
        if not down and (self.streaks[request] >= 3 or self.random.random() >= self.share):
            self.streaks[request] = 0
            return ""
        self.streaks[request] += 1
        how = "before" if down else self.random.choice(("before", "after", "cut"))
        self.failures.append(f"{how}: {request}")
        return how


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
        self.inner, self.store, self.lock = inner, store, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        with self.lock:
            how = self.store.how_to_fail(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if how in ("before", "after"):
            if how == "after":
                list(self.inner(environ, lambda *_: None))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.inner(environ, start_response))
        return [body[: len(body) // 2] if how else body]
