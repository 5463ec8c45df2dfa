"""A server in a thread of the program that asks it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trimode.server import HttpServer


@contextmanager
def in_thread(server: HttpServer) -> Iterator[str]:
    """The address of the server while it runs; stopped at the end."""
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
