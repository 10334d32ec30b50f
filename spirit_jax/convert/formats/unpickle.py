"""Reads a pickle of plain data without executing anything in it.

A name in the pickle is looked up in a table that the caller gives and is never imported. For each name that a file
format needs, the table holds a function that makes a value from the pickled arguments. Any other name is refused, and
so is any opcode that plain data does not need.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from spirit_jax.convert.errors import ConversionError


@dataclass
class PickledObject:
    """An object of a class that is known to hold only data: the name of its class, and what the pickle gives it."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)
    arguments: tuple = ()
    state: Any = None
    """The state that the pickle sets on the object, unless it is a dict of attributes."""


class _Global(str):
    """The dotted name of a class or function in a pickle. It is never resolved."""


AllowedNames = Mapping[str, Callable[..., Any] | None]
"""For each name that a pickle may hold, the function that makes its value; None for a name that must not be called."""


def data_classes(*names: str) -> dict[str, Callable[..., Any]]:
    """Allowed names, each of which makes a `PickledObject`."""

    def maker(name: str) -> Callable[..., PickledObject]:
        return lambda *arguments: PickledObject(name, arguments=arguments)

    return {name: maker(name) for name in names}


_PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


def unpickle(
    stream: IO[bytes],
    where: str,
    allowed: AllowedNames,
    *,
    persistent: Callable[[Any], Any] | None = None,
    built: Callable[[PickledObject], None] | None = None,
) -> Any:
    """Read one pickle and return its value; `stream` is then positioned after the pickle.

    Args:
        where: the file, for messages.
        allowed: the names that the pickle may hold.
        persistent: returns the value of a persistent id; without it persistent ids are refused.
        built: called with each `PickledObject` when its attributes are set; it may read what follows in `stream`.

    Raises:
        ConversionError: a name that is not allowed, an opcode that plain data does not need, a pickle without an end.
        ValueError, TypeError, KeyError, ...: a damaged pickle; the caller turns it into a message that names the
        format.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    def known(name: str) -> _Global:
        if name not in allowed:
            raise ConversionError(
                f"{where}: the file asks for {name}, which is neither a tensor nor a plain container: refused, "
                "nothing was run"
            )
        return _Global(name)

    argument: Any  # its type depends on the opcode
    for opcode, argument, position in pickletools.genops(stream):
        match opcode.name:
            case name if name in _PUSH_ARGUMENT:
                stack.append(argument)
            case name if name in _PUSH_CONSTANT:
                stack.append(_PUSH_CONSTANT[name]())
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "LIST":
                stack.append(since_mark())
            case "DICT":
                stack.append(_pairs(since_mark()))
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = since_mark()
                _expect(stack[-1], list).extend(items)
            case "ADDITEMS":
                items = since_mark()
                _expect(stack[-1], set).update(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = _pairs(since_mark())
                _expect(stack[-1], dict).update(items)
            case "GLOBAL":
                stack.append(known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(known(f"{module}.{attribute}"))
            case "BINPERSID" if persistent:
                stack.append(persistent(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Global)
                make = allowed[function]
                if make is None:
                    raise ConversionError(f"{where}: the file calls {function}: refused, nothing was run")
                stack.append(make(*arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], PickledObject):
                    pickled = stack[-1]
                    if isinstance(state, dict):
                        pickled.attributes.update(state)
                    else:
                        pickled.state = state
                    if built:
                        built(pickled)
                else:  # PyTorch sets the versions of modules, which are no weights, on a state dict
                    _expect(stack[-1], OrderedDict)
            case name:
                raise ConversionError(
                    f"{where}: the pickle uses {name} at byte {position}, which no plain checkpoint needs: refused"
                )
    raise ConversionError(f"{where}: the pickle has no end")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
