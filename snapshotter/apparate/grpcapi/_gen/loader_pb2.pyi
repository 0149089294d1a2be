from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayerPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYER_PHASE_UNSPECIFIED: _ClassVar[LayerPhase]
    LAYER_PHASE_LAZY: _ClassVar[LayerPhase]
    LAYER_PHASE_COMPLETE: _ClassVar[LayerPhase]
    LAYER_PHASE_FAILED: _ClassVar[LayerPhase]
LAYER_PHASE_UNSPECIFIED: LayerPhase
LAYER_PHASE_LAZY: LayerPhase
LAYER_PHASE_COMPLETE: LayerPhase
LAYER_PHASE_FAILED: LayerPhase

class LayerRequest(_message.Message):
    __slots__ = ("layer_digest",)
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    layer_digest: str
    def __init__(self, layer_digest: _Optional[str] = ...) -> None: ...

class LayersRequest(_message.Message):
    __slots__ = ("reference", "manifest_digest")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    reference: str
    manifest_digest: str
    def __init__(self, reference: _Optional[str] = ..., manifest_digest: _Optional[str] = ...) -> None: ...

class LayersResponse(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[ManifestLayer]
    def __init__(self, layers: _Optional[_Iterable[_Union[ManifestLayer, _Mapping]]] = ...) -> None: ...

class ManifestLayer(_message.Message):
    __slots__ = ("digest", "media_type", "size", "annotations")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    media_type: str
    size: int
    annotations: _containers.ScalarMap[str, str]
    def __init__(self, digest: _Optional[str] = ..., media_type: _Optional[str] = ..., size: _Optional[int] = ..., annotations: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("reference", "layer_digest", "annotations")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    layer_digest: str
    annotations: _containers.ScalarMap[str, str]
    def __init__(self, reference: _Optional[str] = ..., layer_digest: _Optional[str] = ..., annotations: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("layer_digest", "blob_size", "image_size")
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOB_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    layer_digest: str
    blob_size: int
    image_size: int
    def __init__(self, layer_digest: _Optional[str] = ..., blob_size: _Optional[int] = ..., image_size: _Optional[int] = ...) -> None: ...

class MountResponse(_message.Message):
    __slots__ = ("layer_digest", "path", "driver")
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    layer_digest: str
    path: str
    driver: str
    def __init__(self, layer_digest: _Optional[str] = ..., path: _Optional[str] = ..., driver: _Optional[str] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("size", "inodes")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    size: int
    inodes: int
    def __init__(self, size: _Optional[int] = ..., inodes: _Optional[int] = ...) -> None: ...

class LayerState(_message.Message):
    __slots__ = ("layer_digest", "reference", "phase", "image_size", "present_bytes", "fetched_bytes", "mounted", "driver", "last_error", "last_error_wall_s")
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOUNTED_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_WALL_S_FIELD_NUMBER: _ClassVar[int]
    layer_digest: str
    reference: str
    phase: LayerPhase
    image_size: int
    present_bytes: int
    fetched_bytes: int
    mounted: bool
    driver: str
    last_error: str
    last_error_wall_s: float
    def __init__(self, layer_digest: _Optional[str] = ..., reference: _Optional[str] = ..., phase: _Optional[_Union[LayerPhase, str]] = ..., image_size: _Optional[int] = ..., present_bytes: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., mounted: _Optional[bool] = ..., driver: _Optional[str] = ..., last_error: _Optional[str] = ..., last_error_wall_s: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("present_bytes", "total_bytes")
    PRESENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    present_bytes: int
    total_bytes: int
    def __init__(self, present_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Touch(_message.Message):
    __slots__ = ("path", "offset", "length")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    offset: int
    length: int
    def __init__(self, path: _Optional[bytes] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class ProfilePart(_message.Message):
    __slots__ = ("touches",)
    TOUCHES_FIELD_NUMBER: _ClassVar[int]
    touches: _containers.RepeatedCompositeFieldContainer[Touch]
    def __init__(self, touches: _Optional[_Iterable[_Union[Touch, _Mapping]]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("reference", "layer_digest")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    LAYER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    reference: str
    layer_digest: str
    def __init__(self, reference: _Optional[str] = ..., layer_digest: _Optional[str] = ...) -> None: ...

class FetchPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
