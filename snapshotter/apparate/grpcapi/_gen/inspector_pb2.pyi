from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayersPart(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[SnapshotLayer]
    def __init__(self, layers: _Optional[_Iterable[_Union[SnapshotLayer, _Mapping]]] = ...) -> None: ...

class SnapshotLayer(_message.Message):
    __slots__ = ("name", "parent", "origin", "reason", "reference", "manifest_digest", "layer_digest", "chain_id", "committed", "created_ns", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    parent: str
    origin: str
    reason: str
    reference: str
    manifest_digest: str
    layer_digest: str
    chain_id: str
    committed: bool
    created_ns: int
    size: int
    def __init__(self, name: _Optional[str] = ..., parent: _Optional[str] = ..., origin: _Optional[str] = ..., reason: _Optional[str] = ..., reference: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., layer_digest: _Optional[str] = ..., chain_id: _Optional[str] = ..., committed: _Optional[bool] = ..., created_ns: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...
