"""The OpenAI-compatible HTTP server: protocol, the engine's thread, streaming."""

from trimode.server.app import create_app
from trimode.server.lifetime import HttpServer
from trimode.server.logs import log_to
from trimode.server.settings import ServerSettings

__all__ = ["HttpServer", "ServerSettings", "create_app", "log_to"]
