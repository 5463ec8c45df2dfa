"""Opening a service and a server: what any host can call."""

import asyncio
import socket
import threading

import pytest

from tests.server.asking import LONG
from trimode import generate
from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.server import ServerSettings, open_server, open_service
from trimode.server.runtime import Choice, StoppedError
from trimode.testing import tiny_model


def submit(service, options):
    return service.submit(
        [Choice((65, 66), options)],
        operation="chat",
        model_name="tiny",
        answer_id="1",
        headers={},
        stream=False,
    )


async def text_of(request):
    steps = request.channel.follow_to_end(1, 60)
    return "".join([step.update.text async for _, step in steps])


def test_the_model_is_loaded_and_measured_in_the_engines_thread():
    threads = []

    def load():
        threads.append(threading.current_thread())
        return tiny_model()

    def measure(_):
        threads.append(threading.current_thread())

    service = open_service(ServerSettings(), load, measure=measure)

    async def live():
        await service.start()
        threads.append(await service.worker.call(threading.current_thread))
        service.stop()

    asyncio.run(live())
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert service.name == service.model.name


def test_a_service_decodes_and_drains_without_http(model):
    service = open_service(ServerSettings(shutdown_timeout=60), lambda: model, measure=None)
    options = GenerationOptions(max_tokens=12, ignore_eos=True)

    async def live():
        await service.start()
        (request,) = await submit(service, options)
        answer = asyncio.create_task(text_of(request))
        await service.drain()
        assert service.stopping
        assert not service.worker.busy
        await asyncio.to_thread(service.stop)
        return await answer

    assert asyncio.run(live()) == generate(model, [65, 66], max_tokens=12, ignore_eos=True).text


def test_an_engine_whose_thread_has_ended_is_a_fault(model, caplog):
    service = open_service(ServerSettings(), lambda: model, measure=None)

    async def live():
        await service.start()
        assert service.worker.fault is None
        service.worker._commands.put(lambda: 1 / 0)
        while service.worker.fault is None:
            await asyncio.sleep(0.01)
        assert service.worker.fault == "the engine's thread has ended"
        await asyncio.to_thread(service.stop)

    asyncio.run(live())
    assert "ZeroDivisionError" in caplog.text


def test_a_mode_that_the_model_cannot_run_is_refused():
    service = open_service(ServerSettings(), lambda: tiny_model("llama"), measure=None)
    service.set_mode("ar")
    for mode in ("fast", "diffusion"):
        with pytest.raises(InputError, match=mode):
            service.set_mode(mode)
    assert service.defaults.mode == "ar"
    service.stop()


def test_draining_can_be_cut_short(model):
    service = open_service(ServerSettings(shutdown_timeout=60), lambda: model, measure=None)

    async def live():
        await service.start()
        (request,) = await submit(service, LONG)
        await service.drain(cut_short=lambda: True)
        with pytest.raises(StoppedError):
            await text_of(request)
        await asyncio.to_thread(service.stop)

    asyncio.run(live())


def test_a_server_has_its_address_before_it_runs(model):
    service = open_service(ServerSettings(), lambda: model, measure=None)
    server = open_server(service)
    host, port = server.url.removeprefix("http://").split(":")
    socket.create_connection((host, int(port)), 5).close()
    with pytest.raises(SystemExit):
        open_server(service, port=int(port))
