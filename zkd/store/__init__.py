"""The only owner of data files. What is larger than a znode should be lies here, named so that it can be checked."""

from zkd.store.blobs import BlobFormat, BlobStore, is_digest
from zkd.store.checkpoints import CheckpointStore
from zkd.store.config_file import ConfigFile
from zkd.store.digest_files import DigestFiles
from zkd.store.home import Home
from zkd.store.segment_cache import SegmentCache
from zkd.store.segments import SegmentStore

__all__ = [
    "BlobFormat",
    "BlobStore",
    "CheckpointStore",
    "ConfigFile",
    "DigestFiles",
    "Home",
    "SegmentCache",
    "SegmentStore",
    "is_digest",
]
