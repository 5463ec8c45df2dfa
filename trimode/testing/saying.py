"""A model that says given texts: to test whatever reads answers."""

from typing import Any

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.config import ModelConfig
from trimode.model import CachedAttention
from trimode.testing.tiny import CHAT_TEMPLATE, byte_tokenizer
from trimode.text import ChatTemplate, Tokenizer


def saying_model(
    *texts: str,
    template: str = CHAT_TEMPLATE,
    tokenizer: Tokenizer | None = None,
    context: int = 1024,
) -> LoadedModel:
    """A model whose logits spell a text and then the end of the answer, in every mode.

    Sampling filters and grammars still apply: where they forbid the next token of the text, they
    choose another, and the model goes on with the text after it.

    Args:
        texts: what it says in the first turn of a conversation, in the second, and so on; the
            last one in all further turns.
        template: its chat template; the answer begins after its generation prompt.
        tokenizer: must have `<|im_end|>`, and `<|mask|>` for modes that draft.
        context: its context length.
    """
    tokenizer = tokenizer or byte_tokenizer()
    chat = ChatTemplate(template)
    messages = [{"role": "user", "content": "\0"}]
    opening = chat.render(messages).rpartition("\0")[2]
    end, mask = tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|mask|>")
    if end is None:
        raise ValueError("the tokenizer needs <|im_end|>")
    config = ModelConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=1,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=context + 2,
        rms_norm_eps=1e-5,
        max_position_embeddings=context,
        mask_token_id=mask,
        eos_token_ids=(end,),
        trained_to_denoise=True,
    )
    opened = tokenizer.encode(opening, add_bos=False)
    said = [[*tokenizer.encode(text, add_bos=False), end] for text in texts]
    return LoadedModel(
        name="saying",
        config=config,
        runner=_SayingRunner(config, opened, said),  # type: ignore[arg-type]
        tokenizer=tokenizer,
        chat_template=chat,
        adapter_scope=None,
    )


class _Format:
    name = "fp32"


class _SayingRunner:
    """Takes the place of a runner. It attends like a real one, over values that spell tokens."""

    kv_dtype = torch.float32
    device = "cpu"
    format = _Format()

    def __init__(self, config: ModelConfig, opening: list[int], said: list[list[int]]) -> None:
        self.config, self._opening, self._said = config, opening, said

    def describe(self) -> str:
        """What it is."""
        return "a model that says one text"

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Any,
        adapter_rows: Any = None,
        given: Any = None,
    ) -> Tensor:
        """What each row sees `[n, context]`, and its position."""
        del adapter_rows, given
        context = self.config.max_position_embeddings
        rows = torch.arange(len(tokens))
        values = torch.zeros(len(tokens), 1, self.config.head_dim)
        values[rows, 0, positions] = tokens.float() + 1
        values[:, 0, context] = (positions == 0).float()  # one row, so its mean is 1 / visible
        attend = CachedAttention(segments, self.kv_dtype, self.device)
        seen = attend(0, torch.zeros_like(values), torch.zeros_like(values), values)
        return torch.cat([seen, tokens[:, None], positions[:, None]], dim=-1)

    def likeliest(self, hidden: Tensor) -> None:
        """Logits are fast enough."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[n, vocab]`: one token each is nearly certain."""
        found = torch.zeros(len(hidden), self.config.vocab_size)
        for i, row in enumerate(hidden):
            found[i, self._next(row)] = 20.0
        return found

    def _next(self, row: Tensor) -> int:
        context = self.config.max_position_embeddings
        token, position = (round(v) for v in row[-2:].tolist())
        spelled = ((row[:context] / row[context]).round().int() - 1).tolist()
        place = position if token == self.config.mask_token_id else position + 1
        turns = _turns(spelled[:place], self._opening)
        said = self._said[min(len(turns), len(self._said)) - 1] if turns else self._said[0]
        return said[min(place - (turns[-1] if turns else 0), len(said) - 1)]


def _turns(tokens: list[int], opening: list[int]) -> list[int]:
    """Where the assistant's turns begin: after each generation prompt."""
    length, last = len(opening), opening[-1]
    ends = (end for end in range(length, len(tokens) + 1) if tokens[end - 1] == last)
    return [end for end in ends if tokens[end - length : end] == opening]
