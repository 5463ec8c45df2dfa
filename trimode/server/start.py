"""From settings to a server that listens, in steps that any host can call.

`trimode serve` takes them all. A host with an HTTP server of its own takes `open_service` and
`create_app`, and calls `Service.drain` before it shuts the application down.
"""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from trimode.checkpoints import LoadedModel
from trimode.decoding import CostCurve
from trimode.engine.costs import cost_curve
from trimode.server.app import create_app
from trimode.server.http.lifetime import HttpServer
from trimode.server.service import Service
from trimode.server.settings import ServerSettings


def open_service(
    settings: ServerSettings,
    load: Callable[[], LoadedModel],
    *,
    measure: Callable[[LoadedModel], CostCurve] | None = cost_curve,
) -> Service:
    """Load a model and measure it, both in the thread that its engine will run in.

    Args:
        settings: of the server.
        load: loads the model.
        measure: measures what a pass costs. None: the first request in mode `auto` waits for that.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    model = thread.submit(load).result()
    costs = None if measure is None else thread.submit(measure, model).result()
    return Service(model, settings, thread=thread, costs=costs)


def open_server(service: Service, *, host: str = "127.0.0.1", port: int = 0) -> HttpServer:
    """An HTTP server that has taken its address; `run` serves until it is told to stop.

    A port that is in use is an error here, before anything says that the server is ready.
    """
    return HttpServer(create_app(service), service, host=host, port=port)


def freeze_memory() -> None:
    """Exempt all objects of now from garbage collection: they live as long as the server.

    Call it once everything is loaded. Otherwise the collector looks through the model's objects
    again and again, while a pass waits.
    """
    gc.collect()
    gc.freeze()
