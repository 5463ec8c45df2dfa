"""A Jinja environment for templates that come with checkpoints of strangers.

Jinja's sandbox keeps a template away from Python. It does not keep it from running for ever or from
filling the memory, and a server renders for each request. So here loops and macros count against a
limit of CPU time, and every operation that can make a long text or a large number is checked before
it is done. No valid template comes near the limits.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_SECONDS = 5.0
"""CPU time of one rendering."""
MOST_CHARACTERS = 8 * 2**20
"""Length of any text that a template makes."""
_MOST_ITEMS = 2**20
_MOST_BITS = 4096
_LARGEST_SIZE = 100_000
"""Largest width, count or indentation; the same as Jinja's limit on `range`."""
_JINJAS_OWN = (Context, Environment, nodes.EvalContext)
_REMOVED_FILTERS = ("wordwrap", "urlize", "random")
_REMOVED_GLOBALS = ("lipsum",)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with limits on time and size; one rendering at a time, in one thread.

    Args:
        options: of a Jinja environment.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = 0.0
        self.concat = _joined
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        self.filters.update({name: limited(filter) for name, filter in self.filters.items()})

    def start(self) -> None:
        """Begin a rendering: the time starts to count."""
        self._deadline = time.thread_time() + MOST_SECONDS

    def tick(self) -> str:
        """Called in every turn of a loop and in every call of a macro.

        Raises:
            SecurityError: the time is up.
        """
        if time.thread_time() > self._deadline:
            raise SecurityError(f"the template runs for more than {MOST_SECONDS:g} s")
        return ""

    def join_texts(self, values: list[Any]) -> str:
        """What `~` does."""
        return _checked_text(str_join(_checked_sum(map(str, values))))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counting().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See Jinja; refuses what would be too large."""
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """See Jinja, whose the odd signature is; refuses what would be too large."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_sizes((*args, *kwargs.values()))
            _check_text_call(getattr(__obj, "__name__", ""), owner, args)
        result = super().call(__context, __obj, *args, **kwargs)
        return _checked_text(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See Jinja; refuses widths that are too large."""
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (*args, *kwargs.values()))
            return _checked_text(made(*args, **kwargs))

        return checked


class _Counting(NodeTransformer):
    """Puts a tick into loops and macros, and makes `~` a call that is checked."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call("join_texts", [nodes.List(node.nodes)], node.lineno)

    def _ticking(self, node: Any) -> Any:
        self.generic_visit(node)
        tick = nodes.ExprStmt(_call("tick", [], node.lineno)).set_lineno(node.lineno)
        node.body.insert(0, tick)
        return node


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    made = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    made.set_lineno(line, override=True)
    return made


def limited(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses large sizes and makes no text that is too long."""
    name = filter.__name__.removeprefix("do_").removeprefix("sync_do_")

    @functools.wraps(filter)  # it keeps Jinja's marks too
    def checked(*args: Any, **kwargs: Any) -> Any:
        # Jinja passes its context or environment first to some filters, and then the value.
        given = [a for a in args if not isinstance(a, _JINJAS_OWN)]
        _check_sizes((*given[1:], *kwargs.values()))
        if given and isinstance(given[0], str):
            _check_text_call(name, given[0], given[1:])
        elif name == "join":
            return _joined_with(filter, args, kwargs, given)
        return _checked_text(filter(*args, **kwargs))

    return checked


def _joined_with(filter: Callable[..., Any], args: Any, kwargs: Any, given: list[Any]) -> Any:
    items = list(given[0])
    separator = given[1] if len(given) > 1 else kwargs.get("d", "")
    if len(items) * len(str(separator)) > MOST_CHARACTERS:
        raise _too_long()
    at = next(i for i, argument in enumerate(args) if argument is given[0])
    return _checked_text(filter(*args[:at], items, *args[at + 1 :], **kwargs))


def _check_operation(operator: str, left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int) and operator == "*":
            most = MOST_CHARACTERS if isinstance(one, str) else _MOST_ITEMS
            if len(one) * other > most:
                raise _too_long()
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length()
        if operator in ("*", "**") and bits + right.bit_length() > _MOST_BITS:
            raise SecurityError("the template makes too large a number")
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        _checked_sum((left, right))
    if operator == "+" and isinstance(left, list) and len(left) > _MOST_ITEMS:
        raise _too_long()
    if operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))


def _check_text_call(name: str, text: str, arguments: Any) -> None:
    if name == "replace" and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        if text.count(old) * len(new) + len(text) > MOST_CHARACTERS:
            raise _too_long()
    if name == "join" and arguments:
        items = arguments[0]
        if isinstance(items, list | tuple) and len(items) * len(text) > MOST_CHARACTERS:
            raise _too_long()
    if name in ("format", "format_map"):
        _check_format(text, arguments)


def _check_format(pattern: str, arguments: Iterable[Any]) -> None:
    digits = "".join(c if c.isdecimal() else " " for c in pattern).split()
    if any(len(number) > 5 for number in digits):
        raise _too_long()
    if "*" in pattern or "{" in pattern:  # a width that is itself an argument
        _check_sizes(arguments)


def _check_sizes(arguments: Iterable[Any]) -> None:
    if any(type(a) is int and abs(a) > _LARGEST_SIZE for a in arguments):
        raise SecurityError(f"the template asks for a size beyond {_LARGEST_SIZE}")


def _checked_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise _too_long()
    return value


def _checked_sum(pieces: Iterable[str]) -> list[str]:
    """The pieces, if they are not too long together."""
    found = list(pieces)
    if sum(map(len, found)) > MOST_CHARACTERS:
        raise _too_long()
    return found


def _joined(pieces: Iterable[str]) -> str:
    return "".join(_checked_sum(pieces))


def _too_long() -> SecurityError:
    return SecurityError(f"the template makes more than {MOST_CHARACTERS} characters")
