"""A server in a thread of the program that is its client."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trimode.server import HttpServer, Service, open_server


@contextmanager
def running(service: Service) -> Iterator[HttpServer]:
    """A server for the service on a free port of loopback; stopped at the end."""
    server = open_server(service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()
