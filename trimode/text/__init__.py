"""The only package that handles text: tokenizer, chat template, detokenizer, stop strings."""

from trimode.text.chat_template import ChatTemplate, chat_template, find_chat_templates
from trimode.text.detokenizer import Detokenizer
from trimode.text.grammar import (
    JSON_STYLE,
    GrammarMatcher,
    gbnf_to_lark,
    json_grammar,
    lark_grammar,
    regex_grammar,
)
from trimode.text.image_parts import WHERE, ImagePart, encode_marked, take_images, with_images
from trimode.text.messages import checked_messages
from trimode.text.stop_strings import StopStrings
from trimode.text.text_stream import TextStream
from trimode.text.tokenizer import Tokenizer

__all__ = [
    "JSON_STYLE",
    "WHERE",
    "ChatTemplate",
    "Detokenizer",
    "GrammarMatcher",
    "ImagePart",
    "StopStrings",
    "TextStream",
    "Tokenizer",
    "chat_template",
    "checked_messages",
    "encode_marked",
    "find_chat_templates",
    "gbnf_to_lark",
    "json_grammar",
    "lark_grammar",
    "regex_grammar",
    "take_images",
    "with_images",
]
