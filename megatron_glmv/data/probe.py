"""Facts of one medium from its bytes; whatever is wrong with it becomes `MediaFacts.error`, never an exception."""

from __future__ import annotations

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.image import image_facts
from megatron_glmv.data.types import IMAGE, VIDEO


def probe(kind: str, member: str, data: bytes) -> MediaFacts:
    """Look at a container without decoding it, but for the first frame of a video (its matrix and rotation)."""
    try:
        if kind == IMAGE:
            return image_facts(member, data)
        if kind == VIDEO:
            from megatron_glmv.data.video_index import video_facts  # PyAV is loaded only where videos are

            return video_facts(member, data)
        return MediaFacts(kind=kind, member=member, bytes=len(data), error=f"unknown kind of medium {kind!r}")
    except SampleError as e:
        return MediaFacts(kind=kind, member=member, bytes=len(data), error=e.reason)
