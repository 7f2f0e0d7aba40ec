"""The one place where vectors of different encoders are kept apart."""

from __future__ import annotations

from embedserve.encoder import ImageEncoder
from embedserve.errors import EncoderMismatch, FailedPrecondition
from embedserve.types import Bound


def check(bound: Bound, encoder: ImageEncoder, given_fingerprint: str, *, has_images: bool, has_vectors: bool) -> None:
    """Refuse what could not be compared with the vectors of a collection.

    Args:
        bound: the collection that is written to or searched.
        encoder: what embeds the images of the call.
        given_fingerprint: of the encoder that made the vectors of the call, as the caller says; or empty.
        has_images: whether the call has images.
        has_vectors: whether the call has vectors.

    Raises:
        EncoderMismatch: images or vectors are of another encoder than the collection's, or do not say of which.
        FailedPrecondition: the collection is external, and the call has images.
    """
    if has_images and bound.external:
        raise FailedPrecondition(
            f"collection {bound.name!r} is external: its vectors come from outside, so it takes no images",
            hint="bring vectors, or make a collection that is bound to the encoder",
        )
    bound_to = f"collection {bound.name!r} is bound to encoder {bound.encoder_name} ({bound.fingerprint[:12]})"
    if has_images and bound.fingerprint != encoder.fingerprint:
        raise EncoderMismatch(
            f"{bound_to}; this server runs {encoder.metadata.name} ({encoder.fingerprint[:12]})",
            hint="serve the encoder that the collection was made with, or add the images to a new collection",
        )
    if given_fingerprint and given_fingerprint != bound.fingerprint:
        raise EncoderMismatch(
            f"the vectors are of encoder {given_fingerprint[:12]}; {bound_to}",
            hint="embed the images with the collection's encoder",
        )
    if has_vectors and not given_fingerprint and not bound.external:
        raise EncoderMismatch(
            f"the vectors do not say which encoder made them; {bound_to}",
            hint="give encoder_fingerprint, as the response of Embed names it",
        )
