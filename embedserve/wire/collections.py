"""Collections, their recall and their checks ↔ messages."""

from __future__ import annotations

import logging

from embedserve.errors import InvalidInput
from embedserve.types import DEFAULT_TARGET_RECALL, CheckProgress, CheckReport, CollectionInfo, Keep, Recall
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.wire.server import encoder_ref
from embedserve.wire.vectors import fraction_from_proto

_log = logging.getLogger("embedserve.wire")

_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, which a time on the wire may have; older releases restored collections with others."""
_KEEP_TO_PROTO: dict[Keep, collection_pb.KeepMedia.ValueType] = {
    Keep.NONE: collection_pb.KEEP_MEDIA_NONE,
    Keep.THUMBNAILS: collection_pb.KEEP_MEDIA_THUMBNAILS,
    Keep.ORIGINALS: collection_pb.KEEP_MEDIA_ORIGINALS,
}


def keep_to_proto(keep: Keep) -> collection_pb.KeepMedia.ValueType:
    """What is kept of images, as the wire's enum."""
    return _KEEP_TO_PROTO[keep]


def keep_from_proto(value: int) -> Keep:
    """What is kept of images; thumbnails if the field is not set.

    Raises:
        InvalidInput: the value is not known.
    """
    if value == collection_pb.KEEP_MEDIA_UNSPECIFIED:
        return Keep.THUMBNAILS
    for keep, known in _KEEP_TO_PROTO.items():
        if value == known:
            return keep
    raise InvalidInput(f"keep_media {value} is not known")


def collection_to_proto(info: CollectionInfo) -> collection_pb.Collection:
    """A collection as a message."""
    message = collection_pb.Collection(
        name=info.name,
        encoder=encoder_ref(info.encoder_name, info.fingerprint, info.dimension),
        keep_media=keep_to_proto(info.keep),
        item_count=info.items,
        aliases=info.aliases,
        index=info.index,
        disk_bytes=info.disk_bytes,
        index_spec=info.index_spec,
        target_recall=info.target_recall,
        filter_keys=info.filter_keys,
        recall=recall_to_proto(info.recall),
        building=info.building,
        segment_count=info.segments,
        unsealed_count=info.unsealed,
        dead_count=info.deleted,
    )
    message.created_at.FromMicroseconds(round(min(max(info.created_unix_s, _FIRST_S), _LAST_S) * 1e6))
    return message


def listed_to_proto(info: CollectionInfo) -> collection_pb.Collection:
    """A collection as a message in a list; of one that no message holds there is only the name, beside the others."""
    try:
        return collection_to_proto(info)
    except (ValueError, TypeError, OverflowError) as error:
        fields = {"collection": info.name, "reason": str(error)}
        _log.error("a collection cannot be described, only named", extra={"fields": fields})
        return collection_pb.Collection(name=info.name)


def collection_from_proto(message: collection_pb.Collection) -> CollectionInfo:
    """The collection in a message."""
    return CollectionInfo(
        name=message.name,
        fingerprint=message.encoder.fingerprint,
        encoder_name=message.encoder.name,
        dimension=message.encoder.dimension,
        keep=keep_from_proto(message.keep_media),
        created_unix_s=message.created_at.ToMicroseconds() / 1e6,
        items=message.item_count,
        aliases=tuple(message.aliases),
        index=message.index,
        disk_bytes=message.disk_bytes,
        # An older server does not set the next two.
        index_spec=message.index_spec or "auto",
        target_recall=fraction_from_proto(message.target_recall) or DEFAULT_TARGET_RECALL,
        filter_keys=tuple(message.filter_keys),
        recall=recall_from_proto(message.recall) if message.HasField("recall") else None,
        building=message.building,
        segments=message.segment_count,
        unsealed=message.unsealed_count,
        deleted=message.dead_count,
    )


def recall_to_proto(recall: Recall | None) -> collection_pb.Recall | None:
    """A measured recall as a message; None, for a field that stays unset, if there is none."""
    if recall is None:
        return None
    message = collection_pb.Recall(value=recall.value, query_count=recall.queries, real_queries=recall.real)
    message.measured_at.FromMicroseconds(round(recall.measured_unix_s * 1e6))
    return message


def recall_from_proto(message: collection_pb.Recall) -> Recall:
    """The measured recall in a message."""
    return Recall(
        value=fraction_from_proto(message.value),
        queries=message.query_count,
        real=message.real_queries,
        measured_unix_s=message.measured_at.ToMicroseconds() / 1e6,
    )


def check_step_to_proto(step: CheckProgress | CheckReport) -> collection_pb.CheckCollectionResponse:
    """The progress of a check, or its report, as a message."""
    if isinstance(step, CheckProgress):
        progress = collection_pb.CheckProgress(stage=step.stage, done_count=step.done, total_count=step.total)
        return collection_pb.CheckCollectionResponse(progress=progress)
    report = collection_pb.CheckReport(
        item_count=step.items,
        segment_count=step.segments,
        searched_count=step.searched,
        recall=recall_to_proto(step.recall),
        problems=step.problems,
    )
    return collection_pb.CheckCollectionResponse(report=report)


def check_step_from_proto(message: collection_pb.CheckCollectionResponse) -> CheckProgress | CheckReport:
    """The progress of a check, or its report, from a message."""
    if message.HasField("progress"):
        return CheckProgress(message.progress.stage, message.progress.done_count, message.progress.total_count)
    report = message.report
    return CheckReport(
        items=report.item_count,
        segments=report.segment_count,
        searched=report.searched_count,
        recall=recall_from_proto(report.recall) if report.HasField("recall") else None,
        problems=tuple(report.problems),
    )
