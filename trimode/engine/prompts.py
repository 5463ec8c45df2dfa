"""Prompts as users give them, to token ids and the pictures among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimode.checkpoints import LoadedModel
from trimode.engine.pictures import PromptImage
from trimode.errors import InputError
from trimode.text import ImagePart, encode_marked, take_images, with_images
from trimode.vision import LOW_DETAIL, PictureFormat, ProcessedImage, is_file_source, read_source

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]
"""A user turn, token ids taken as they are, or chat messages, which may hold pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as an engine takes it."""

    tokens: tuple[int, ...]
    images: tuple[PromptImage, ...] = ()


def encode_prompt(
    model: LoadedModel, prompt: Prompt, *, raw: bool = False, **template_variables: Any
) -> list[int]:
    """Token ids of a prompt without pictures; see `read_prompt`."""
    return list(read_prompt(model, prompt, raw=raw, **template_variables).tokens)


def read_prompt(
    model: LoadedModel,
    prompt: Prompt,
    *,
    images: Sequence[Any] = (),
    raw: bool = False,
    **template_variables: Any,
) -> EncodedPrompt:
    """Token ids of a prompt, and its pictures.

    Args:
        model: the model whose tokenizer and chat template to use.
        prompt: a string becomes one user turn if the model has a chat template. A message's content
            may hold parts `{"type": "image", "image": ...}`.
        images: paths, bytes, `data:` URLs or Pillow images. They stand before a string; for
            messages see `with_images`.
        raw: take a string as it is, without the chat template. Pictures stand where it spells the
            model's image token, or else before it.
        template_variables: passed to the template (`enable_thinking`, `tools`).

    Raises:
        InputError: the prompt is empty, its messages are not well formed, a picture cannot be read,
            or the model reads none.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("prompt", "empty", "must have at least one character")
        if raw or model.chat_template is None:
            return _read_raw(model, prompt, images)
        prompt = [{"role": "user", "content": prompt}]
    if all(hasattr(item, "__index__") for item in prompt):  # int, numpy and torch integers
        if images:
            raise InputError("images", "given beside token ids", "use `Engine.add`")
        return EncodedPrompt(tuple(int(item) for item in prompt))  # type: ignore[arg-type]
    if model.chat_template is None:
        raise InputError("messages", "given", f"{model.name} has no chat template; use a prompt")
    conversation = with_images(prompt, images) if images else list(prompt)
    messages, parts = take_images(conversation)
    pictures = {part.mark: read_part(model.require_vision(part.where), part) for part in parts}
    if pictures:
        template_variables["image_token"] = image_text(model)
        template_variables["pictures"] = tuple(pictures)
    text = model.chat_template.render(messages, **template_variables)
    return encode_pictures(model, text, pictures)


def encode_pictures(
    model: LoadedModel,
    text: str,
    pictures: Mapping[str, ProcessedImage],
    letters: Mapping[str, str] | None = None,
) -> EncodedPrompt:
    """The tokens of a rendered conversation, in which characters stand for pictures.

    Raises:
        InputError: see `encode_marked`.
    """
    if not pictures:
        return EncodedPrompt(encode_marked(model.tokenizer, text, {}, letters)[0])
    vision = model.require_vision("messages")
    layouts = {mark: vision.prompt_tokens(image) for mark, image in pictures.items()}
    tokens, starts = encode_marked(model.tokenizer, text, layouts, letters)
    images = map(PromptImage, pictures.values(), starts)
    return EncodedPrompt(tokens, tuple(images))


def image_text(model: LoadedModel) -> str:
    """How a text spells the token of a picture."""
    return model.tokenizer.token_text(model.require_vision("messages").tokens.image)


def read_part(vision: PictureFormat, part: ImagePart) -> ProcessedImage:
    """A picture of a conversation, read from where it says.

    Raises:
        InputError: it cannot be read; names its place.
    """
    longest = LOW_DETAIL if part.low_detail else None
    return _read(vision, part.source, part.where, longest)


def _read(
    vision: PictureFormat, source: Any, where: str, longest: int | None = None
) -> ProcessedImage:
    """A picture. The pixels of a file are read again when the tower wants them.

    So a run over many files holds no more pixels than those of the picture that is being read.
    """

    def read() -> ProcessedImage:
        return vision.process(read_source(source, name=where), longest=longest)

    image = read()
    if not is_file_source(source):
        return image

    def pixels() -> np.ndarray:
        again = read()
        if again.key != image.key:
            raise InputError(where, f"{source} has changed", "a file that stays as it is")
        return again.read()

    return replace(image, read=pixels)


def _read_raw(model: LoadedModel, text: str, images: Sequence[Any]) -> EncodedPrompt:
    """A text as it is, with pictures."""
    if not images:
        return EncodedPrompt(tuple(model.tokenizer.encode(text)))
    vision, spelled = model.require_vision("images"), image_text(model)
    processed = [_read(vision, image, f"images[{i}]") for i, image in enumerate(images)]
    pieces = text.split(spelled)
    if len(pieces) == 1:
        pieces = [""] * len(images) + pieces
    if len(pieces) - 1 != len(images):
        found = f"{len(images)} beside a text with {len(pieces) - 1} {spelled}"
        raise InputError("images", found, f"one for each {spelled}, or a text without")
    tokens = model.tokenizer.encode("") + model.tokenizer.encode(pieces[0], add_bos=False)
    placed = []
    for image, piece in zip(processed, pieces[1:], strict=True):
        placed.append(PromptImage(image, len(tokens)))
        tokens += vision.prompt_tokens(image)
        tokens += model.tokenizer.encode(piece, add_bos=False) if piece else []
    return EncodedPrompt(tuple(tokens), tuple(placed))
