"""Reads a pickle of plain data without executing anything in it.

A name in the pickle is looked up in a table that the caller gives and is never imported. For each name that a file
format needs, the table holds a function that makes a value from the pickled arguments. Any other name is refused, and
so is any opcode that plain data does not need.

Time and memory are bounded by the length of the pickle. The number of opcodes is limited. Keys are numbers, text or
short flat tuples, because the hash of a nested tuple may take forever. Values that a pickle hands to a function, and
its result, are limited in depth and in their size when every shared value is written out (`check_tree`), so that
whoever walks over them needs no precautions.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from spirit_jax.convert.errors import ConversionError

MAX_DEPTH = 100
"""Containers inside each other."""
MAX_VALUES = 2_000_000
"""Opcodes of a pickle, and values in its result when every shared value is written out."""
MAX_KEY_LENGTH = 64
"""Items of a tuple that is a key."""
_MAX_INTEGER_BYTES = 1024
_SPARE_TEXT = 64 * 2**20  # characters and bytes beyond four times the length of the pickle


@dataclass
class PickledObject:
    """An object of a class that is known to hold only data: the name of its class, and what the pickle gives it."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)
    arguments: tuple = ()
    state: Any = None
    """The state that the pickle sets on the object, unless it is a dict of attributes."""


class Stream(Protocol):
    """Source of a pickle. `read` returns less than asked for at the end, and never allocates more than that."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass
class Budget:
    """Number of values and amount of text that a pickle has used."""

    where: str
    length: int = 0
    """Bytes of the pickle so far; four times as much text may be used, and `_SPARE_TEXT` beyond it."""
    values: int = 0
    text: int = 0

    def spend(self, values: int, text: int) -> None:
        """Use values and text.

        Raises:
            ConversionError: more than a plain checkpoint needs.
        """
        self.values += values
        self.text += text
        for used, limit, what in (
            (self.values, MAX_VALUES, "values"),
            (self.text, _SPARE_TEXT + 4 * self.length, "characters"),
        ):
            if used > limit:
                raise ConversionError(f"{self.where}: holds more than {limit} {what} when written out: refused")


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
    stream: Stream,
    where: str,
    allowed: AllowedNames,
    *,
    persistent: Callable[[Any], Any] | None = None,
    built: Callable[[PickledObject], None] | None = None,
) -> Any:
    """Read one pickle and return its value; `stream` is then positioned after the pickle.

    Args:
        stream: a `mmap.mmap` or an `io.BytesIO`; a file would allocate whatever length a pickle claims.
        where: the file, for messages.
        allowed: the names that the pickle may hold.
        persistent: returns the value of a persistent id; without it persistent ids are refused.
        built: called with each `PickledObject` when its attributes are set; it may read what follows in `stream`.

    Raises:
        ConversionError: a name that is not allowed, an opcode that plain data does not need, a pickle without an end,
            values that are nested too deeply, hold themselves, or are too many.
        ValueError, TypeError, KeyError, ...: a damaged pickle; the caller turns it into a message that names the
        format.
    """
    start, count, budget = stream.tell(), 0, Budget(where)
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
                f"{where}: the file asks for {name[:200]}, which is {_description(name)}: refused, nothing was run"
            )
        return _Global(name)

    def checked(arguments: Any) -> Any:
        budget.length = stream.tell() - start
        check_tree(arguments, budget)
        return arguments

    argument: Any  # its type depends on the opcode
    for opcode, argument, position in pickletools.genops(cast(IO[bytes], stream)):
        count += 1
        if count > MAX_VALUES:
            raise ConversionError(f"{where}: a pickle of more than {MAX_VALUES} opcodes: refused")
        match opcode.name:
            case name if name in _PUSH_ARGUMENT:
                if isinstance(argument, int) and argument.bit_length() > 8 * _MAX_INTEGER_BYTES:
                    raise ConversionError(f"{where}: an integer of more than {_MAX_INTEGER_BYTES} bytes: refused")
                stack.append(argument)
            case name if name in _PUSH_CONSTANT:
                stack.append(_PUSH_CONSTANT[name]())
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return checked(stack.pop())
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
                _expect(stack[-1], set).update(map(_key, items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_key(key)] = value
            case "SETITEMS":
                items = _pairs(since_mark())
                _expect(stack[-1], dict).update(items)
            case "GLOBAL":
                stack.append(known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(known(f"{module}.{attribute}"))
            case "BINPERSID" if persistent:
                stack.append(persistent(checked(stack.pop())))
            case "REDUCE" | "NEWOBJ":
                arguments, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Global)
                make = allowed[function]
                if make is None:
                    raise ConversionError(f"{where}: the file calls {function}: refused, nothing was run")
                stack.append(make(*checked(arguments)))
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


def _description(name: str) -> str:
    """Description of a name that is not allowed, with what to do about it."""
    if name.startswith(("torch.nn.", "torch.jit.")):
        return "a whole network; save its weights alone, as in torch.save(network.state_dict(), FILE)"
    if name.startswith("torch."):
        return "a tensor of a type that is not supported (8-bit float, quantized or sparse); save it as bfloat16"
    return "neither a tensor nor a plain container"


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return pairs_as_dict(zip(items[::2], items[1::2], strict=True))


def pairs_as_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict from pairs whose keys are numbers, text or short flat tuples.

    Raises:
        TypeError: another key.
    """
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """Return a key whose hash takes no time."""
    scalars = (str, bytes, int, float, bool, type(None))
    flat = isinstance(key, tuple) and len(key) <= MAX_KEY_LENGTH and all(isinstance(item, scalars) for item in key)
    if not flat and not isinstance(key, scalars):
        raise TypeError(f"a {type(key).__name__} as a key, text or a number expected")
    return key


def check_tree(value: Any, budget: Budget) -> None:
    """Check the depth and size of nested containers, where a shared value counts every time that it occurs.

    The time is that of the distinct values. Other objects count as one value.

    Raises:
        ConversionError: containers that are nested too deeply, that hold themselves, or that are too large.
    """
    known: dict[int, tuple[int, int, int]] = {}

    def measure(value: Any, depth: int) -> tuple[int, int, int]:
        """Values, characters and height; `depth` containers are around the value."""
        content = _content(value)
        if content is None:
            return 1, len(value) if isinstance(value, str | bytes | bytearray) else 0, 0
        found = known.get(id(value), (0, 0, 0))
        if depth + found[2] > MAX_DEPTH:  # values that hold themselves reach any depth
            raise ConversionError(
                f"{budget.where}: containers that are nested more than {MAX_DEPTH} deep, or hold themselves: refused"
            )
        if id(value) not in known:
            values, text, height = 1, 0, 0
            for item in content:
                inner = measure(item, depth + 1)
                values, text, height = values + inner[0], text + inner[1], max(height, inner[2])
            found = known[id(value)] = values, text, height + 1
        return found

    budget.spend(*measure(value, 0)[:2])


def _content(value: Any) -> Iterator[Any] | None:
    """The items of a container, None for anything else."""
    if isinstance(value, dict):
        return (item for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set):
        return iter(value)
    if isinstance(value, PickledObject):
        return iter((value.attributes, value.arguments, value.state))
    return None
