"""The pictures of a request: fetched, decoded and sized beside the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from trimode.checkpoints import LoadedModel
from trimode.errors import InputError
from trimode.server.fetch import fetch_picture
from trimode.server.settings import ServerSettings
from trimode.text import ImagePart
from trimode.vision import LOW_DETAIL, ProcessedImage, Vision, base64_bytes, data_url_bytes, decode


class Pictures:
    """Reads the pictures that requests hold.

    Files are decoded one after the other. A picture of 60 million pixels takes half a gigabyte
    while it is decoded, and few megabytes after that.
    """

    def __init__(self, model: LoadedModel, settings: ServerSettings) -> None:
        self._model, self._settings = model, settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def read(self, parts: Sequence[ImagePart]) -> dict[str, ProcessedImage]:
        """The pictures by the characters that stand for them.

        Raises:
            InputError: the model reads none, there are too many, or one cannot be read. It names
                the part at fault.
        """
        if not parts:
            return {}
        vision = self._model.require_vision(parts[0].where)
        most = self._settings.max_images
        if len(parts) > most:
            raise InputError(parts[most].where, f"{len(parts)} pictures", f"at most {most}")
        return {part.mark: await self._one(part, vision) for part in parts}

    async def _one(self, part: ImagePart, vision: Vision) -> ProcessedImage:
        limits, source = self._settings.image_limits, part.source
        if not isinstance(source, str):
            raise InputError(part.where, type(source).__name__, "must be the URL of a picture")
        content: bytes | None = None
        if source[:5].lower() != "data:" and ":" in source[:20]:
            hosts = self._settings.allow_image_hosts
            content = await fetch_picture(source, hosts, limits, name=part.where)

        def work() -> ProcessedImage:
            data = content
            if data is None and source[:5].lower() == "data:":
                data = data_url_bytes(source, limits=limits, name=part.where)
            elif data is None:
                data = base64_bytes(source, limits=limits, name=part.where)
            image = decode(data, limits=limits, name=part.where)
            return vision.process(image, longest=LOW_DETAIL if part.low_detail else None)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def stop(self) -> None:
        """Take no more work."""
        self._thread.shutdown(wait=False, cancel_futures=True)
