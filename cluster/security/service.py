"""A node's guard from its start to its stop: reads the files that the settings name, looks at them every second, and acts on what changed.

What cannot be used is not: a file that is damaged, half written or open to others leaves everything as it was, is counted, and is warned
of once. So a mistake while secrets are changed never shuts a running node out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

from twisted.logger import Logger

from ...membership.channel import Channel
from ...membership.discovery.base import Poller
from ...membership.driver import Driver
from ...membership.errors import LocalError
from ...membership.member import WORKER_MARK
from ...membership.sealing import DatagramSealer, PlainDatagrams, SealedDatagrams
from ...membership.secret import Secret
from ..tables import NodeSettings, SecuritySettings
from .authority import utc_now
from .certificates import AUTHORITY_FILE, FILES, REVOKED_FILE, Credentials, Revoked, load_credentials, read_revoked
from .guards import CertificateGuard, Guard, SecretGuard
from .keyring import from_environment, read_secrets
from .private_files import Watched, write_file
from .revoking import RECEIVER, Revoking

__all__ = ["Security"]

_log = Logger()
_LOOK_S = 1.0
_WARN_EVERY_S, _WARN_BEFORE_S = 86400.0, 14 * 86400.0  # of the end of the node's own certificate


class Guarded(Channel, Protocol):
    """What the service needs of the channel."""

    def readmit(self, *, renew: bool = False) -> None:
        """Cut off whoever the guard does not admit any more. `renew`: this node has another certificate itself."""


class Security:
    """Of one node; reactor thread. Raises `LocalError` when what the settings name cannot be used.

    `guard`: None on loopback without a secret or certificates. `sealer`: of datagrams; None: no multicast, for want of a secret for it.
    """

    def __init__(self, settings: SecuritySettings, node: NodeSettings, cluster: str, uid: bytes, entropy: Callable[[int], bytes]) -> None:
        self._settings = settings
        self._node = node.name.partition(WORKER_MARK)[0]  # a worker shows the certificate of its host's node
        self._is_local = ip_address(node.host).is_loopback
        self._cluster = cluster
        self._driver: Driver | None = None
        self._channel: Guarded | None = None
        self._revoking: Revoking | None = None
        self._watched = Watched(*self._paths())  # before anything is read
        self._errors = self._reloads = self._lists_refused = 0
        self._trouble = ""  # why the files cannot be used, as it was said last
        self._warn_at = 0.0
        self.guard: Guard | None = None
        self.sealer: DatagramSealer | None = None
        secrets: list[Secret] = []
        if settings.certificates:
            credentials = self._load()
            self.guard = CertificateGuard(credentials, cluster)
            secrets = list(credentials.multicast)
        elif settings.secret_file or from_environment():
            secrets = self._read()
            self.guard = SecretGuard(secrets, cluster)
        elif self._is_local:
            self.sealer = PlainDatagrams()
        elif not node.insecure:
            raise LocalError(
                f"node.host {node.host} is outside loopback, and there is no secret: neither security.secret_file, nor certificates, nor one in CATERWAUL_SECRET"
            )
        if secrets:
            self.sealer = SealedDatagrams(secrets, cluster, uid, entropy)

    @property
    def mode(self) -> str:
        """`certificates`, `secret`, or `none`."""
        return self.guard.mode if self.guard is not None else "none"

    @property
    def description(self) -> str:
        """How this node tells friends from strangers, in words."""
        if self.guard is None:
            return "in the clear: no secret, no certificates" + (", so loopback only" if self._is_local else "")
        return f"encrypted ({self.mode})"

    def start(self, channel: Guarded, clock: Any) -> None:
        """Look after the files, and tell other nodes of revoked certificates."""
        self._channel = channel
        if isinstance(self.guard, CertificateGuard):
            guard = self.guard
            self._revoking = Revoking(channel, lambda: guard.revoked, self._offered)
            channel.attach(RECEIVER, self._revoking)
        if self._paths():
            self._driver = Driver(Poller(_LOOK_S), clock, self._look)
            self._driver.start()

    def stop(self) -> None:
        if self._driver is not None:
            self._driver.stop()
        if self._channel is not None and self._revoking is not None:
            self._channel.detach(RECEIVER)

    def reload(self) -> None:
        """Read the files again and act on them, on connections that are open too. Raises `LocalError`, and then nothing has changed."""
        renew = False
        if isinstance(self.guard, CertificateGuard):
            credentials = self._load()
            renew = self.guard.replace(credentials)
            self._seal(credentials.multicast)
            if self._revoking is not None:
                self._revoking.announce()  # also an old number: a list that could not be checked before may be had again
        elif isinstance(self.guard, SecretGuard):
            secrets = self._read()
            self.guard.replace(secrets)
            self._seal(secrets)
        self._reloads += 1
        if self._channel is not None:
            self._channel.readmit(renew=renew)

    def statistics(self) -> dict[str, Any]:
        """`secrets`: their ids, the one in use first. `valid_for_s`: how long the node's own certificate is still good, below 0 when it is not."""
        found: dict[str, Any] = {"mode": self.mode, "reloads": self._reloads, "errors": self._errors, "lists_refused": self._lists_refused}
        if self.guard is not None:
            found |= self.guard.statistics(utc_now())
        if isinstance(self.sealer, SealedDatagrams):
            found["datagrams"] = self.sealer.statistics()
        return found

    # -- inside

    def _paths(self) -> list[Path]:
        if self._settings.certificates:
            return [self._directory / name for name in FILES]
        return [Path(self._settings.secret_file)] if self._settings.secret_file else []

    @property
    def _directory(self) -> Path:
        return Path(self._settings.certificates)

    def _load(self) -> Credentials:
        return load_credentials(self._directory, self._cluster, self._node, utc_now())

    def _read(self) -> list[Secret]:
        return read_secrets(Path(self._settings.secret_file)) if self._settings.secret_file else from_environment()

    def _seal(self, secrets: Any) -> None:
        if isinstance(self.sealer, SealedDatagrams) and secrets:
            self.sealer.replace(secrets)

    def _look(self, now: float) -> None:
        if self._watched.has_changed() or self._trouble:
            self._try_to_reload()
        if isinstance(self.guard, CertificateGuard) and self._warn_at <= now:
            self._warn_at = now + _WARN_EVERY_S
            left_s = self.guard.valid_for_s(utc_now())
            if left_s < _WARN_BEFORE_S:
                over = "has ended: this node can connect to nobody any more, and nobody to it" if left_s < 0 else f"ends in {left_s / 86400:.1f} days"
                _log.warn("security: the certificate of {node} {over}; `caterwaul ca issue {node}` makes another", node=self._node, over=over)

    def _try_to_reload(self) -> None:
        try:
            self.reload()
        except LocalError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._errors += 1
                _log.warn("security: {error}; everything stays as it was, and is tried again", error=error)
            self._revoke_at_least()
        else:
            self._trouble = ""
            _log.info("security: secrets or certificates were read again")

    def _revoke_at_least(self) -> None:
        """Other files of the directory cannot be used. The list of revoked ones counts all the same, if it is a newer one."""
        if isinstance(self.guard, CertificateGuard):
            with suppress(LocalError):
                self._adopt(read_revoked(self._directory / REVOKED_FILE, self.guard.authorities))

    def _adopt(self, revoked: Revoked) -> bool:
        """Use that list if it is newer, and tell the others. Whether it is."""
        assert isinstance(self.guard, CertificateGuard), "or there are no lists"
        if not self.guard.revoke(revoked):
            return False
        _log.warn("security: list {number} of revoked certificates, {count} in all", number=revoked.number, count=len(revoked.serials))
        if self._revoking is not None:
            self._revoking.announce()
        if self._channel is not None:
            self._channel.readmit()
        return True

    def _offered(self, der: bytes) -> None:
        """A member says a list of revoked certificates. One that no authority known here has signed may be of an authority that this node will hear of."""
        assert isinstance(self.guard, CertificateGuard), "else nobody listens"
        try:
            revoked = Revoked.read(der, self.guard.authorities)
        except ValueError as error:
            self._lists_refused += 1
            if self._lists_refused == 1:
                _log.warn(
                    "security: a list of revoked certificates is refused: {error}; is {path} up to date?", error=error, path=self._directory / AUTHORITY_FILE
                )
            return
        if not self._adopt(revoked):
            return
        try:
            write_file(self._directory / REVOKED_FILE, der, private=False)
        except LocalError as error:  # it counts all the same, until this process ends
            self._errors += 1
            _log.warn("security: {error}; after a restart this node learns the list from others", error=error)
