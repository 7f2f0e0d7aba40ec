"""The comments of the protos as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodOptions,
    ServiceDescriptorProto,
)

from embedserve import errors

PACKAGE = "embedserve.v1"
ORDER = ("embedding_service", "search_service", "collection_service", "common")
"""Files in the order of the page."""

HEADER = f"""\
# The wire: `{PACKAGE}`

Made from the comments in `protos/` by `make proto`; change those, not this page. Beside these services a server answers
`grpc.health.v1.Health` and server reflection, so that `grpcurl` and `grpc_health_probe` work without any file.

An item that cannot be processed fails alone: its result is a `google.rpc.Status` whose details hold a
`google.rpc.ErrorInfo` with a stable code as `reason`. The status of the call itself is for what concerns all of it.
Both kinds of error use the same codes:

"""

_NOT_FROM_A_SERVER = (
    errors.ImageError,  # only its subclasses are raised
    errors.ItemsFailed,
    errors.DataError,
    errors.TrainingError,
    errors.ExportError,
    errors.SetupError,
)

_REPEATED = FieldDescriptorProto.LABEL_REPEATED
# Paths in SourceCodeInfo are field numbers of descriptor.proto.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _ONEOF, _METHOD, _VALUE = 2, 8, 2, 2


def render(files: FileDescriptorSet) -> str:
    """The whole page."""
    ours = {file.name.rsplit("/", 1)[-1].removesuffix(".proto"): file for file in files.file if file.package == PACKAGE}
    names = [*ORDER, *sorted(ours.keys() - set(ORDER))]
    sections = [HEADER + _error_table()]
    for name in names:
        sections += list(_file(ours[name]))
    return "\n".join(sections).rstrip() + "\n"


def _error_table() -> str:
    lines = ["| code | gRPC status | HTTP | meaning |", "|---|---|---|---|"]
    for kind in _descendants(errors.EmbedserveError):
        if kind not in _NOT_FROM_A_SERVER:
            meaning = (kind.__doc__ or "").strip().split("\n")[0]
            lines.append(f"| `{kind.code}` | `{kind.grpc_status}` | {kind.http_status} | {meaning} |")
    return "\n".join(lines) + "\n"


def _descendants(kind: type[errors.EmbedserveError]) -> Iterator[type[errors.EmbedserveError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


class _Comments:
    """Comments of one file by descriptor path."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._text = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
            if location.leading_comments
        }

    def __call__(self, *path: int) -> str:
        return " ".join(self._text.get(path, "").split())


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for number, service in enumerate(file.service):
        yield from _service(service, comments, number)
    if not file.service:
        yield "## Shared messages\n"
    for number, message in enumerate(file.message_type):
        yield from _message(message, comments, number)
    for number, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, number)


def _service(service: ServiceDescriptorProto, comments: _Comments, number: int) -> Iterator[str]:
    yield f"## {service.name}\n\n{comments(_SERVICE, number)}\n"
    for index, method in enumerate(service.method):
        request = ("stream " if method.client_streaming else "") + _link(method.input_type)
        response = ("stream " if method.server_streaming else "") + _link(method.output_type)
        level = method.options.idempotency_level
        safety = {MethodOptions.NO_SIDE_EFFECTS: " · no side effects", MethodOptions.IDEMPOTENT: " · idempotent"}
        yield f"**`{method.name}`** ({request}) → {response}{safety.get(level, '')}  "
        yield f"{comments(_SERVICE, number, _METHOD, index)}\n"


def _message(message: DescriptorProto, comments: _Comments, number: int) -> Iterator[str]:
    yield f"### {message.name}\n\n{comments(_MESSAGE, number)}\n"
    if not message.field:
        yield "No fields.\n"
        return
    yield "| # | field | type | meaning |\n|---|---|---|---|"
    for index, field in enumerate(message.field):
        meaning = comments(_MESSAGE, number, _FIELD, index)
        if field.HasField("oneof_index") and not field.proto3_optional:
            choice = message.oneof_decl[field.oneof_index].name
            meaning = f"one of `{choice}`: {meaning}"
        yield f"| {field.number} | `{field.name}` | {_type(field, message)} | {_cell(meaning)} |"
    yield ""
    for index, choice_of in enumerate(message.oneof_decl):
        if text := comments(_MESSAGE, number, _ONEOF, index):
            yield f"`{choice_of.name}`: {text}\n"


def _enum(enum: EnumDescriptorProto, comments: _Comments, number: int) -> Iterator[str]:
    yield f"### {enum.name}\n\n{comments(_ENUM, number)}\n"
    yield "| # | value | meaning |\n|---|---|---|"
    for index, value in enumerate(enum.value):
        yield f"| {value.number} | `{value.name}` | {_cell(comments(_ENUM, number, _VALUE, index))} |"
    yield ""


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"map of {_type(key, message)} to {_type(value, message)}"
    if field.type_name:
        name = _link(field.type_name)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == _REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".")
    if name.startswith(f"{PACKAGE}."):
        short = name.removeprefix(f"{PACKAGE}.")
        return f"[{short}](#{short.lower()})"
    return f"`{name}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
