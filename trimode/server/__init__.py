"""The OpenAI-compatible HTTP server: protocol, the engine's thread, streaming."""

from trimode.server.app import create_app
from trimode.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
