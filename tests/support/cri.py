"""A small client of the Container Runtime Interface: what kubelet does to containerd, done by tests.

The messages come from cri.proto, compiled when the first client is made; one set serves both versions of the API.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc
from tests.support.processes import wait_until

CALL_TIMEOUT_S = 600.0
MESSAGE_LIMIT = 16 << 20
NODE_NAMESPACE = 2  # NamespaceMode.NODE
EXITED = 2  # ContainerState.EXITED
RUNNING = 1
_PACKAGE = "apparate.tests.cri"
_EMPTY_ANSWERS = {
    "StopPodSandbox", "RemovePodSandbox", "StartContainer", "StopContainer", "RemoveContainer", "RemoveImage",
}  # fmt: skip


@functools.cache
def messages() -> Mapping[str, Any]:
    """The message classes of cri.proto by name."""
    folder = Path(__file__).parent
    with tempfile.NamedTemporaryFile() as out:
        status = protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out.name}", str(folder / "cri.proto")])
        if status:
            raise AssertionError(f"cri.proto does not compile: {status}")
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    found: dict[str, Any] = {}
    for file in files.file:
        pool.Add(file)
        for message in file.message_type:
            found[message.name] = message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"{_PACKAGE}.{message.name}")
            )
    return found


class CriError(Exception):
    """containerd refused a call; `code` is the gRPC status."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method}: {code.name}: {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class ExecResult:
    stdout: str
    stderr: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A started pod sandbox: its id and the configuration that containers of it repeat."""

    sandbox_id: str
    config: Any
    log_directory: Path


class Container:
    """One container of a pod."""

    def __init__(self, client: CriClient, container_id: str, log: Path) -> None:
        self.id = container_id
        self._client = client
        self._log = log

    @property
    def log(self) -> Path:
        """Where containerd writes what the container says."""
        return self._log

    def output(self) -> str:
        """What the container has written so far, both streams, without the time stamps of the CRI log format."""
        if not self._log.exists():
            return ""
        text = ""
        for line in self._log.read_text(errors="replace").splitlines():
            _, _, tag, rest = [*line.split(" ", 3), ""][:4]
            text += rest + ("" if tag == "P" else "\n")
        return text

    def line_wall_ns(self, text: str) -> int:
        """When containerd logged the first line that holds *text* (wall clock, nanoseconds).

        Raises:
            AssertionError: there is none yet.
        """
        for line in self._log.read_text(errors="replace").splitlines():
            if text in line:
                return _parse_rfc3339_ns(line.split(" ", 1)[0])
        raise AssertionError(f"the container has not printed {text!r}")

    def status(self) -> Any:
        return self._client.call("ContainerStatus", container_id=self.id).status

    def wait_output(self, text: str, timeout_s: float = 120.0) -> str:
        """Wait until the output holds *text*; a container that ends without it is an error."""

        def seen() -> bool:
            if text in self.output():
                return True
            status = self.status()
            if status.state == EXITED and text not in self.output():
                raise AssertionError(f"container ended with {status.exit_code}, not {text!r}: {self.output()[-4000:]}")
            return False

        wait_until(seen, f"the container prints {text!r}", timeout_s)
        return self.output()

    def wait(self, timeout_s: float = 300.0) -> int:
        """Wait until the container has ended; return its exit code."""
        wait_until(lambda: self.status().state == EXITED, f"container {self.id[:12]} ends", timeout_s)
        return int(self.status().exit_code)

    def exec(self, command: Sequence[str], timeout_s: int = 120) -> ExecResult:
        answer = self._client.call("ExecSync", container_id=self.id, cmd=list(command), timeout=timeout_s)
        return ExecResult(
            answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace"), answer.exit_code
        )

    def stop(self, timeout_s: int = 0) -> None:
        self._client.call("StopContainer", container_id=self.id, timeout=timeout_s)

    def remove(self) -> None:
        self._client.call("RemoveContainer", container_id=self.id)


class CriClient:
    """Calls one containerd. *api* is "v1" or "v1alpha2" (containerd 1.4 and 1.5 have only the latter)."""

    def __init__(self, socket: Path, api: str, log_root: Path, cgroup_parent: str) -> None:
        self._channel = grpc.insecure_channel(
            f"unix://{socket}",
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_send_message_length", MESSAGE_LIMIT),
                ("grpc.default_authority", "localhost"),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._api = api
        self._log_root = log_root
        self._cgroup_parent = cgroup_parent
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Any:
        """One CRI call with the request's *fields*.

        Raises:
            CriError: any status but OK.
        """
        known = messages()
        service = "ImageService" if "Image" in method else "RuntimeService"
        answer = known["Nothing" if method in _EMPTY_ANSWERS else f"{method}Response"]
        invoke = self._channel.unary_unary(
            f"/runtime.{self._api}.{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return invoke(known[f"{method}Request"](**fields), timeout=timeout_s)
        except grpc.RpcError as error:
            raise CriError(method, error.code(), error.details()) from error

    def version(self) -> str:
        return str(self.call("Version", timeout_s=5).runtime_version)

    def pull(self, reference: str, auth: tuple[str, str] | None = None) -> str:
        """Pull as kubelet does; returns the image's id."""
        given = messages()["AuthConfig"](username=auth[0], password=auth[1]) if auth else None
        answer = self.call("PullImage", image=self._spec(reference), auth=given, sandbox_config=self._sandbox("pull"))
        return str(answer.image_ref)

    def images(self) -> list[Any]:
        return list(self.call("ListImages").images)

    def remove_image(self, reference: str) -> None:
        self.call("RemoveImage", image=self._spec(reference))

    def image_fs(self) -> list[Any]:
        return list(self.call("ImageFsInfo").image_filesystems)

    def run_pod(self, name: str = "pod", annotations: Mapping[str, str] | None = None) -> Pod:
        """Start a pod sandbox in the host's network."""
        config = self._sandbox(f"{name}-{next(self._numbers)}", annotations)
        log_directory = Path(config.log_directory)
        log_directory.mkdir(parents=True, exist_ok=True)
        return Pod(str(self.call("RunPodSandbox", config=config).pod_sandbox_id), config, log_directory)

    def start(
        self,
        pod: Pod,
        reference: str,
        command: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
    ) -> Container:
        """Create and start a container of *pod*; *mounts* are container paths to host paths, writable."""
        known = messages()
        name = f"c{next(self._numbers)}"
        config = known["ContainerConfig"](
            metadata=known["ContainerMetadata"](name=name),
            image=self._spec(reference),
            command=list(command),
            envs=[known["KeyValue"](key=key, value=value) for key, value in (env or {}).items()],
            mounts=[known["Mount"](container_path=to, host_path=str(of)) for to, of in (mounts or {}).items()],
            log_path=f"{name}.log",
            linux=known["LinuxContainerConfig"](
                security_context=known["LinuxContainerSecurityContext"](namespace_options=_host_network())
            ),
        )
        created = self.call(
            "CreateContainer", pod_sandbox_id=pod.sandbox_id, config=config, sandbox_config=pod.config
        ).container_id
        self.call("StartContainer", container_id=created)
        return Container(self, str(created), pod.log_directory / f"{name}.log")

    def remove_pod(self, pod: Pod) -> None:
        """Stop and remove the sandbox with all its containers."""
        self.call("StopPodSandbox", pod_sandbox_id=pod.sandbox_id)
        self.call("RemovePodSandbox", pod_sandbox_id=pod.sandbox_id)

    def remove_all(self) -> None:
        """Remove every pod and every image."""
        for item in self.call("ListPodSandbox").items:
            self.call("StopPodSandbox", pod_sandbox_id=item.id)
            self.call("RemovePodSandbox", pod_sandbox_id=item.id)
        for image in self.images():
            self.remove_image(image.id)

    def _sandbox(self, name: str, annotations: Mapping[str, str] | None = None) -> Any:
        known = messages()
        return known["PodSandboxConfig"](
            metadata=known["PodSandboxMetadata"](name=name, uid=str(uuid.uuid4()), namespace="default"),
            log_directory=str(self._log_root / name),
            annotations=dict(annotations or {}),
            linux=known["LinuxPodSandboxConfig"](
                cgroup_parent=self._cgroup_parent,
                security_context=known["LinuxSandboxSecurityContext"](namespace_options=_host_network()),
            ),
        )

    @staticmethod
    def _spec(reference: str) -> Any:
        return messages()["ImageSpec"](image=reference)


def _host_network() -> Any:
    return messages()["NamespaceOption"](network=NODE_NAMESPACE)


def _parse_rfc3339_ns(text: str) -> int:
    """Nanoseconds since 1970 of 2026-01-02T03:04:05.123456789Z (or with an offset), all nine digits kept."""
    seconds, _, rest = text.partition(".")
    digits = "".join(itertools.takewhile(str.isdigit, rest))
    zone = rest[len(digits) :] if rest else ""
    whole = dt.datetime.fromisoformat(seconds + (zone or "+00:00").replace("Z", "+00:00"))
    return int(whole.timestamp()) * 1_000_000_000 + int(digits.ljust(9, "0")[:9] or 0)
