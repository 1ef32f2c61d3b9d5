import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.canonical import canonical_json, digest, digest_of_text, identity_text
from peftbench.spec import SPECS, Optim, SubsetSpec

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value, draw):
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: shuffled(value[key], draw) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, draw) for item in value]
    return value


@given(plain, st.data())
def test_order_of_keys_does_not_count(value, data):
    assert canonical_json(value) == canonical_json(shuffled(value, data.draw))


@given(plain)
def test_canonical_json_survives_a_round_trip(value):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@given(plain, plain)
def test_different_values_have_different_text(one, other):
    if repr(one) != repr(other) and one != other:
        assert canonical_json(one) != canonical_json(other)


def test_an_int_in_a_float_field_is_that_float():
    assert digest(Optim(learning_rate=1, connector_learning_rate=0)) == digest(
        Optim(learning_rate=1.0, connector_learning_rate=0.0)
    )


def test_a_default_written_out_changes_nothing():
    assert digest(Optim(learning_rate=0.1, connector_learning_rate=0.0)) == digest(
        Optim(learning_rate=0.1, connector_learning_rate=0.0, beta1=0.9, schedule="cosine")
    )


def test_swapped_values_are_another_digest():
    one = Optim(learning_rate=0.1, connector_learning_rate=0.2)
    other = Optim(learning_rate=0.2, connector_learning_rate=0.1)
    assert digest(one) != digest(other)


def test_nan_and_infinity_are_refused():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError):
            canonical_json({"loss": value})


def test_identity_text_is_canonical():
    parts = {"stage": "train", "spec": {"b": 1, "a": "é"}, "code": {"m": "1"}, "inputs": {"data": "0"}}
    composed = identity_text("train", *(canonical_json(parts[key]) for key in ("spec", "code", "inputs")))
    assert composed == canonical_json(parts)
    assert digest_of_text(composed) == digest(parts)
    assert len(digest(parts)) == 16


def test_a_digest_stays_what_it_is():
    """The digests of stored results must not change with a refactoring of this code."""
    assert (
        digest(SubsetSpec(size=1000, seed=42))
        == digest_of_text('{"seed":42,"size":1000}')
        == "7e4ad91261e73b53"
    )


def test_unknown_fields_of_a_spec_are_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field `sede`"):
        msgspec.convert({"size": "full", "seed": 1, "sede": 2}, SPECS["subset"])
