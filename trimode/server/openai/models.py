"""/v1/models: the model that is served, once for each mode, so that a menu switches modes."""

from typing import Any

from fastapi import FastAPI

from trimode.config import MODES
from trimode.server.choices import mode_suffix
from trimode.server.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the list and the card of the model."""
    config = service.model.config
    context = config.max_position_embeddings

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "trimode",
            # What vLLM, LM Studio and llama.cpp call the same.
            "max_model_len": context,
            "context_length": context,
            "max_context_length": context,
            "context_window": context,
            "meta": {
                "n_ctx_train": context,
                "n_vocab": config.vocab_size,
                "n_embd": config.hidden_size,
                "n_params": service.parameters,
            },
        }

    @app.get("/v1/models/", include_in_schema=False)
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [service.name, *(f"{service.name}:{mode}" for mode in MODES)]
        return {"object": "list", "data": [card(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        mode_suffix(service, name)  # refuses another model
        return card(name)
