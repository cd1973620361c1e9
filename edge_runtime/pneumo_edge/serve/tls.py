"""TLS on DICOM connections and to DICOMweb servers: who we are, and whom we believe (PS3.15 B, BCP 195)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from pneumo_edge.errors import UsageError


@dataclass(frozen=True)
class Identity:
    """The files that the options name."""

    certificate: Path | None = None
    """PEM, ours, with what leads up to an authority."""
    key: Path | None = None
    """PEM, without a password; None where it stands in `certificate`."""
    authority: Path | None = None
    """PEM, the certificates of those whose word we take; None for those of the system."""

    def for_callers(self) -> ssl.SSLContext:
        """Returns what a server needs. With an authority, callers must show a certificate of it.

        Raises:
            UsageError: A file cannot be read, or they do not fit together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        if self.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def for_calls(self) -> ssl.SSLContext:
        """Returns what a client needs: the other side is checked, by name too.

        Raises:
            UsageError: See `for_callers`.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        if self.authority is None:
            context.load_default_certs()
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.certificate is not None:
                # A key with a password would be asked for at the terminal.
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
            if self.authority is not None:
                context.load_verify_locations(self.authority)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the files of --tls-certificate, --tls-key and --tls-authority cannot be used "
                f"({error.strerror or error}): give PEM files that fit together, the key without a password"
            ) from None
