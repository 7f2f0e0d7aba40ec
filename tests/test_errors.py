"""The tree of errors and its table."""

from __future__ import annotations

import pickle
import re
import traceback

import grpc
import pytest

from embedserve import AddResult, errors
from embedserve.errors import (
    EmbedserveError,
    InternalError,
    InvalidInput,
    ItemsFailed,
    Overloaded,
    all_errors,
    from_code,
)

KINDS = [kind for kind in all_errors() if kind.__module__ == "embedserve.errors"]
WITH_OWN_CODE = [kind for kind in KINDS if kind is not EmbedserveError and "code" in vars(kind)]


def drawn_tree() -> dict[str, tuple[str | None, str]]:
    """Class → (parent, code) as drawn in the docstring of errors.py."""
    tree: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)\s*([A-Z_]{2,})?(?:\s|$)", line):
            depth = (match.start(2) - 4) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = (path[depth - 1] if depth else None, match[3] or "")
    return tree


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {kind.__name__: None if kind is EmbedserveError else kind.__mro__[1].__name__ for kind in KINDS}
    assert {name: parent for name, (parent, _) in drawn_tree().items()} == real


def test_the_codes_in_the_docstring_are_the_real_ones() -> None:
    drawn = {name: code for name, (_, code) in drawn_tree().items() if code}
    assert drawn == {kind.__name__: kind.code for kind in WITH_OWN_CODE}


def test_every_class_has_its_own_code_except_one_that_is_never_raised_and_one_that_is_a_kind_of_its_parent() -> None:
    without = [kind for kind in KINDS if kind not in WITH_OWN_CODE]
    assert without == [EmbedserveError, errors.ImageError, errors.NotAnEncoder]
    assert errors.NotAnEncoder.code == "ENCODER_FILE"  # programs and older clients know it


def test_no_two_classes_share_a_code() -> None:
    codes = [kind.code for kind in WITH_OWN_CODE]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_grpc_status_exists_and_is_neither_ok_nor_unknown(kind: type[EmbedserveError]) -> None:
    assert kind.grpc_status in {status.name for status in grpc.StatusCode} - {"OK", "UNKNOWN"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_http_status_and_exit_code_means_failure(kind: type[EmbedserveError]) -> None:
    assert 400 <= kind.http_status <= 599
    assert kind.exit_code in (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[EmbedserveError]) -> None:
    again = pickle.loads(pickle.dumps(kind("seven is too many", hint="use six")))
    assert type(again) is kind
    assert (again.message, again.hint, str(again)) == ("seven is too many", "use six", "seven is too many")


def test_a_traceback_shows_the_hint_once() -> None:
    def shown(error: EmbedserveError) -> str:
        return "".join(traceback.format_exception_only(error))

    error = InvalidInput("seven is too many", hint="use six")
    expected = "embedserve.errors.InvalidInput: seven is too many\nhint: use six\n"
    assert shown(error) == expected
    assert shown(pickle.loads(pickle.dumps(error))) == expected
    assert shown(error.at("image 3").at("call 2")) == expected.replace("seven", "call 2: image 3: seven")
    assert shown(InvalidInput("seven is too many")) == "embedserve.errors.InvalidInput: seven is too many\n"


def test_a_note_on_an_error_is_none_on_the_one_it_was_made_of() -> None:
    error = InvalidInput("seven is too many", hint="use six")
    error.at("image 3").add_note("in the morning")
    assert error.__notes__ == ["hint: use six"]


def test_failed_items_carry_all_results_through_pickling() -> None:
    results = [AddResult("a"), AddResult("b", InvalidInput("bad", hint="good"))]
    again = pickle.loads(pickle.dumps(ItemsFailed("1 of 2", hint="see failures", results=results)))
    assert [(result.id, type(result.error)) for result in again.results] == [("a", type(None)), ("b", InvalidInput)]
    assert [result.id for result in again.failures] == ["b"]


def test_the_retry_time_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(Overloaded("busy", retry_after_ms=40)))
    assert again.retry_after_ms == 40


@pytest.mark.parametrize("kind", WITH_OWN_CODE)
def test_a_code_maps_back_to_its_class(kind: type[EmbedserveError]) -> None:
    error = from_code(kind.code, "what happened", hint="what to do")
    assert type(error) is kind
    assert (error.message, error.hint) == ("what happened", "what to do")


def test_a_code_of_a_newer_server_becomes_an_internal_error() -> None:
    assert type(from_code("INVENTED_LATER", "what happened")) is InternalError


def test_a_position_is_put_before_the_message_and_changes_nothing_else() -> None:
    error = Overloaded("busy", hint="wait", retry_after_ms=40)
    placed = error.at("image 3 of 8")
    assert type(placed) is Overloaded
    assert str(placed) == "image 3 of 8: busy"
    assert (placed.message, placed.hint, placed.retry_after_ms) == ("image 3 of 8: busy", "wait", 40)
    assert error.message == "busy"
