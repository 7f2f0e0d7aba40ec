"""Whether vectors may be compared: the one place where those of different encoders are kept apart."""

from __future__ import annotations

import re

from embedserve.encoder.session import ImageEncoder
from embedserve.errors import EncoderMismatch, FailedPrecondition, InvalidInput
from embedserve.types import EXTERNAL, CollectionIdentity, Keep

_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LONGEST_NAME = 256


def new_identity(
    name: str,
    encoder: ImageEncoder,
    *,
    keep: Keep,
    external: bool,
    dimension: int,
    encoder_fingerprint: str,
    encoder_name: str,
) -> CollectionIdentity:
    """The identity of a new collection: bound to the server's encoder unless ``external`` or a fingerprint is given.

    Args:
        name: of the collection.
        encoder: the server's.
        keep: what is kept of images.
        external: bound to no encoder.
        dimension: numbers in a vector; 0 for the encoder's.
        encoder_fingerprint: of an encoder that this server does not run, or empty.
        encoder_name: name of that encoder.

    Raises:
        InvalidInput: the arguments contradict each other, or one of them is not allowed.
    """
    ours = encoder.metadata
    if external and encoder_fingerprint:
        raise InvalidInput(
            "external and encoder_fingerprint are given; an external collection is bound to no encoder",
            hint="give one of the two",
        )
    if encoder_name and not encoder_fingerprint:
        raise InvalidInput("encoder_name is given without encoder_fingerprint, by which vectors are told apart")
    if encoder_fingerprint and not _FINGERPRINT.fullmatch(encoder_fingerprint):
        raise InvalidInput(f"encoder_fingerprint {encoder_fingerprint[:80]!r} is not 64 hexadecimal digits")
    if len(encoder_name) > _LONGEST_NAME:
        raise InvalidInput(f"encoder_name has {len(encoder_name)} characters; at most {_LONGEST_NAME} are allowed")
    if not external and encoder_fingerprint in ("", encoder.fingerprint):
        if dimension not in (0, ours.dimension):
            raise InvalidInput(
                f"dimension {dimension} was asked for; the encoder makes vectors of {ours.dimension}",
                hint="leave the dimension out, or create an external collection",
            )
        return CollectionIdentity(
            name=name, fingerprint=encoder.fingerprint, encoder_name=ours.name, dimension=ours.dimension, keep=keep
        )
    if not 1 <= dimension <= 65536:
        whose = "an external collection" if external else "a collection that is bound to another encoder"
        raise InvalidInput(f"{whose} needs a dimension of 1–65536, not {dimension}")
    fingerprint = EXTERNAL if external else encoder_fingerprint
    return CollectionIdentity(
        name=name, fingerprint=fingerprint, encoder_name=encoder_name, dimension=dimension, keep=keep
    )


def check(
    identity: CollectionIdentity, encoder: ImageEncoder, given_fingerprint: str, *, has_images: bool, has_vectors: bool
) -> None:
    """Refuse images and vectors that cannot be compared with the vectors of a collection.

    Args:
        identity: the collection that is written to or searched.
        encoder: embeds the images of the call.
        given_fingerprint: of the encoder that made the vectors of the call, according to the caller; or empty.
        has_images: whether the call has images.
        has_vectors: whether the call has vectors.

    Raises:
        EncoderMismatch: images or vectors are of another encoder than the collection's, or the vectors' is not given.
        FailedPrecondition: the collection is external, and the call has images.
    """
    if has_images and identity.external:
        raise FailedPrecondition(
            f"collection {identity.name!r} is external: its vectors come from outside, so it takes no images",
            hint="send vectors, or create a collection that is bound to the encoder",
        )
    bound_to = f"collection {identity.name!r} is bound to encoder {identity.encoder_name} ({identity.fingerprint[:12]})"
    if has_images and identity.fingerprint != encoder.fingerprint:
        raise EncoderMismatch(
            f"{bound_to}; this server runs {encoder.metadata.name} ({encoder.fingerprint[:12]})",
            hint="serve the encoder that the collection is bound to, or add the images to a new collection",
        )
    if given_fingerprint and given_fingerprint != identity.fingerprint:
        if identity.external:
            raise EncoderMismatch(
                f"encoder {given_fingerprint[:12]} made the vectors; collection {identity.name!r} is external and is"
                " bound to no encoder",
                hint="leave encoder_fingerprint out, or create a collection with this encoder_fingerprint",
            )
        raise EncoderMismatch(
            f"encoder {given_fingerprint[:12]} made the vectors; {bound_to}",
            hint="embed the images with the collection's encoder",
        )
    if has_vectors and not given_fingerprint and not identity.external:
        raise EncoderMismatch(
            f"the vectors do not say which encoder made them; {bound_to}",
            hint="give encoder_fingerprint, as the response of Embed names it",
        )
