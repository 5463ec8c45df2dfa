"""The OpenAI-compatible HTTP server.

`start` opens it, `app` lists its endpoints, `openai` has a file for each of them, `http` is what
surrounds them, `service` is the model and its engine, `runtime` the engine's thread, `observe` the
logs, metrics and spans. Imports go down in that order (docs/design/0013).
"""

from trimode.server.app import create_app
from trimode.server.http.lifetime import HttpServer
from trimode.server.observe.logs import log_to
from trimode.server.service import Service
from trimode.server.settings import ServerSettings
from trimode.server.start import freeze_memory, open_server, open_service

__all__ = [
    "HttpServer",
    "ServerSettings",
    "Service",
    "create_app",
    "freeze_memory",
    "log_to",
    "open_server",
    "open_service",
]
