"""From a conversation, in whichever protocol it came, to a prompt and the form of the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.errors import InputError
from trimode.server.dialogue.constraints import Constraint
from trimode.server.dialogue.dialect import Dialect
from trimode.server.dialogue.form import AnswerForm, answer_form
from trimode.server.dialogue.prompt import ChatPrompt, Message, chat_prompt
from trimode.server.dialogue.tools import ToolChoice
from trimode.text import checked_messages
from trimode.text.grammar_check import GrammarCheck
from trimode.vision import ProcessedImage

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""Values of `reasoning_effort`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a request says, in OpenAI's chat terms."""

    messages: list[Message]
    choice: ToolChoice = field(default_factory=ToolChoice)
    constraint: Constraint | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template reads besides messages and tools (`enable_thinking`)."""
    prefill: bool | None = None
    """Whether the answer continues the last message. None: if it is the assistant's."""
    generation_prompt: bool = True


def template_variables(
    given: dict[str, Any] | None, enable_thinking: bool | None, effort: str | None
) -> dict[str, Any]:
    """What a chat template reads besides messages and tools.

    Args:
        given: `chat_template_kwargs`.
        enable_thinking: the same as in `given`.
        effort: `reasoning_effort`; `none` turns thinking off.

    Raises:
        InputError: a name is one that the server itself gives, or the effort is unknown.
    """
    found = dict(given or {})
    for name in ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token"):
        if name in found:
            raise InputError(f"chat_template_kwargs.{name}", "given", "the server sets it")
    if effort is not None:
        if effort not in EFFORTS:
            raise InputError("reasoning_effort", repr(effort), f"allowed: {', '.join(EFFORTS)}")
        found = {"reasoning_effort": effort, "enable_thinking": effort != "none", **found}
    if enable_thinking is not None:
        found["enable_thinking"] = enable_thinking
    return found


def prepare(
    model: LoadedModel,
    dialect: Dialect,
    check: GrammarCheck,
    conversation: Conversation,
    pictures: Mapping[str, ProcessedImage],
) -> tuple[ChatPrompt, AnswerForm]:
    """The prompt, and the form of the answer. May block: run it off the event loop.

    Args:
        model: has the template and the tokenizer.
        dialect: of the model.
        check: of grammars.
        conversation: its messages hold a character in place of each picture.
        pictures: by these characters.

    Raises:
        InputError: something of the conversation is refused; names the field.
    """
    prompt = chat_prompt(
        model,
        dialect,
        checked_messages(conversation.messages),
        conversation.choice.offered,
        pictures=pictures,
        variables=conversation.variables,
        prefill=conversation.prefill,
        generation_prompt=conversation.generation_prompt,
    )
    form = answer_form(
        conversation.choice, conversation.constraint, dialect.calls, prompt.thought, check
    )
    return prompt, form
