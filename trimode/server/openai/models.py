"""/v1/models: the model that is served."""

from typing import Any

from fastapi import FastAPI

from trimode.server.http.guards import key_guards
from trimode.server.openai.options import mode_suffix
from trimode.server.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the list and the card of the model."""
    keyed = key_guards(service)
    card = {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "trimode",
        "max_model_len": service.model.config.max_position_embeddings,
    }

    @app.get("/v1/models", dependencies=keyed)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def one_model(name: str) -> dict[str, Any]:
        mode_suffix(service, name)  # refuses another model
        return card
