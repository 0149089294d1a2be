"""`apparate node restore`: the exact inverse of `configure`, whoever edited what in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from apparate.containerd.client import K8S, Containerd, container_name, each_container
from apparate.errors import ApparateError, FailedPrecondition, Unavailable, Unsupported
from apparate.node import files, toml_edit
from apparate.node.configure import in_phase
from apparate.node.containerd_config import FileChange
from apparate.node.images import NodeImages
from apparate.node.lock import exclusive
from apparate.node.restart import wait_until
from apparate.node.settings import NAME
from apparate.node.state import GivenBack, Phase, State
from apparate.node.switch import Report, Switch, diff_of
from apparate.telemetry.logging import get_logger

_log = get_logger("node.restore")

RESTORED = "node is as it was"
IMAGE_REMOVED = "image removed, it has no layers outside the snapshotter"
SETTING_LEFT = "setting was changed by somebody else and stays"

COLLECT_S: Final = 60.0
"""Until containerd has removed the snapshots of released images: its collector waits for other work."""
NAMES_SHOWN: Final = 5


class Restorer:
    """Gives one node back."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._store = switch.store

    def restore(self, *, check: bool, default_only: bool, force: bool) -> Report:
        """Give the node back as it was, or with *check* say what that takes. Repeating it changes nothing.

        With *default_only* the former default snapshotter comes back and the plugin stays, for containers that stand on it.
        With *force* containerd is not asked anything: for a node whose containerd is broken or gone.

        Raises:
            FailedPrecondition: containers stand on our snapshotter; nothing was changed.
            ApparateError: it failed; the message says what is in force.
        """
        if check:
            return self._restore(check=True, default_only=default_only, force=force)
        with exclusive(self._switch.settings.state_dir):
            try:
                report = self._restore(check=False, default_only=default_only, force=force)
            except ApparateError as error:
                if self._store.load() is not None:
                    self._store.note_error(str(error))
                raise
            self._store.clear_error()
            return report

    def _restore(self, *, check: bool, default_only: bool, force: bool) -> Report:
        state = self._store.load()
        if state is None:
            return Report(changed=False)
        given = self._store.give_back(state)
        aim = _leaving(state, given) if default_only else given.body
        diff = diff_of({given.path: given.now}, {given.path: aim})
        if force:
            return self._force(given, diff, check=check)
        if state.phase is Phase.CHANGING:
            if not check:
                self._switch.repair(state)
            return Report(changed=True, diff=diff, steps=("take back the unfinished change of a run that was killed",))
        self._require_acceptable(given)
        if not default_only:
            self._refuse_containers(state)
        returning = state.phase is not Phase.LEAVING
        steps = [f"give new pods back to {state.former}", "restart containerd"] if returning else []
        if not default_only:
            steps += [f"release the images under {NAME}", f"give back {given.path}", "restart containerd"]
        if not check and returning:
            state = self._return_default(state, given)
        if not check and not default_only:
            self._refuse_containers(state)
            steps += self._release(state.former)
            self._leave(given)
        return Report(changed=bool(steps), diff=diff, steps=tuple(steps))

    def _require_acceptable(self, given: GivenBack) -> None:
        """Raise unless containerd would start with the file as it is given back."""
        try:
            self._switch.planner.effective({**self._switch.on_disk(), given.path: given.body})
        except Unsupported as error:
            raise Unsupported(f"{error}; give --force to restore without asking containerd") from error

    def _refuse_containers(self, state: State) -> None:
        with self._switch.connect() as (daemon, _):
            try:
                standing = [container_name(container) for _, container in each_container(daemon, NAME)]
            except Unavailable as error:
                raise Unavailable(f"{error}: start containerd, or give --force to restore without asking it") from error
        if not standing:
            return
        shown = ", ".join(sorted(standing)[:NAMES_SHOWN]) + (" and others" if len(standing) > NAMES_SHOWN else "")
        hint = (
            "remove them (drain the node), then repeat"
            if state.phase is Phase.LEAVING
            else f"`apparate node restore --default-only` gives new pods back to {state.former} at once; remove these (drain the "
            "node), then repeat"
        )
        raise FailedPrecondition(f"{len(standing)} containers stand on snapshotter {NAME} ({shown}): {hint}")

    def _return_default(self, state: State, given: GivenBack) -> State:
        """Have containerd start new pods on the former default, with our plugin still loaded."""
        # All edits stay on record: a run that is killed now leaves the file with all of them, or with those that are kept.
        change = FileChange(given.path, given.body, _leaving(state, given), state.edits)
        begun = in_phase(State.of(change, state.former, state.apparate_version), Phase.RETURNING)
        self._store.begin(change, begun)
        try:
            self._switch.move(change.path, change.after, lambda _: None)
        except BaseException:
            if files.read(change.path) == given.now:
                self._store.begin(FileChange(given.path, given.body, given.now, state.edits), state)
            raise
        leaving = in_phase(begun, Phase.LEAVING)
        self._store.save(leaving)
        return leaving

    def _release(self, former: str) -> list[str]:
        """Free every snapshot of ours in containerd; an image that would be left without layers goes."""
        done = []
        with self._switch.connect() as (daemon, _):
            images = NodeImages(daemon)
            snapshots = daemon.on(K8S, former)
            for image in images.survey():
                if image.usable_under(snapshots):
                    images.release(image, NAME)
                    continue
                images.remove(image)
                _log.info(IMAGE_REMOVED, ref=image.names[0])
                done.append(f"removed {image.names[0]}: it was loaded on demand, kubelet pulls it again")
            wait_until(lambda: _require_empty(daemon), time.monotonic() + COLLECT_S)
        return done

    def _leave(self, given: GivenBack) -> None:
        for edit in given.left:
            _log.warning(SETTING_LEFT, path=str(given.path), setting=".".join(edit.path))
        self._switch.move(given.path, given.body, lambda _: None)
        self._store.forget()
        _log.info(RESTORED, path=str(given.path))

    def _force(self, given: GivenBack, diff: str, *, check: bool) -> Report:
        steps = (f"give back {given.path}", "restart containerd")
        if not check:
            files.replace(given.path, given.body)
            self._store.forget()
            _log.info(RESTORED, path=str(given.path))
            self._switch.tools.restarter.restart()
        return Report(changed=True, diff=diff, steps=steps)


def _leaving(state: State, given: GivenBack) -> bytes:
    """Return the file with nothing of ours but the plugin itself."""
    kept = [(edit.path, edit.value) for edit in state.edits if edit.path[0] in {"proxy_plugins", "version"}]
    text, _ = toml_edit.apply(toml_edit.decode(given.body or b"", str(given.path)), kept, str(given.path))
    return text.encode()


def _require_empty(daemon: Containerd) -> None:
    left: Sequence[str] = ()
    for namespace in daemon.namespaces():
        daemon.collect(namespace)
        left = [*left, *(f"{namespace}/{name}" for name in daemon.on(namespace, NAME).names())]
    if left:
        raise FailedPrecondition(
            f"{len(left)} snapshots are still in use, as {left[0]}: remove the images and leases that hold them "
            f"(ctr -n NAMESPACE snapshots --snapshotter {NAME} ls)"
        )
