"""A run that is signed: SHA256SUMS over weights, report and records, and a signature over that.

The signature is one of model-signing (extra `sign`) with an elliptic-curve key, as a Sigstore bundle: it is
made and checked without a network. So is the list, by `sha256sum -c SHA256SUMS` in the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.claims.sums import SUMS, Difference, differences, parsed, sums_of, written
from robustcli.errors import ResourceError, UsageError, printable
from robustcli.regular import read_bytes
from robustcli.reporting.dossier import Dossier
from robustcli.store.atomic import write_atomic

SIGNATURE = f"{SUMS}.sig"
_LIMIT = 1 << 26  # bytes of the sums
_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY, openssl ec -in KEY -pubout -out PUB"


@dataclass(frozen=True)
class Verified:
    """What the check of a signed run has found.

    Args:
        signed: files in the list.
        broken: why the signature is not one of this key over the list; "" where it is.
        difference: how the files differ from the list; None with a broken signature.
    """

    signed: int
    broken: str
    difference: Difference | None

    @property
    def holds(self) -> bool:
        """Whether all is as it was signed."""
        return not self.broken and not self.difference

    @property
    def words(self) -> str:
        """In a line."""
        if self.broken:
            return f"broken: {self.broken}"
        if self.difference:
            return f"broken: {self.difference.words}"
        return f"good: {self.signed} files are as they were signed"


def signer_of(private_key: Path) -> Any:
    """What signs with a key.

    Raises UsageError for what is no unencrypted elliptic-curve key in PEM, ResourceError E-EXTRA without the
    extra.
    """
    signing = _library().signing
    with _explained_key(private_key, "private"):
        return signing.Config().use_elliptic_key_signer(private_key=private_key)


def sign(dossier: Dossier, signer: Any) -> Path:
    """Write SHA256SUMS and its signature into a run; returns the signature. signer: of `signer_of`.

    Raises UsageError for a run that has not ended well, and as `sums_of`.
    """
    if not dossier.measured:
        raise UsageError("the run has not ended well: it is not signed", where=str(dossier.path))
    sums, signature = dossier.path / SUMS, dossier.path / SIGNATURE
    write_atomic(sums, written(sums_of(dossier)).encode("utf-8", "surrogateescape"))
    signer.sign(sums, signature)
    return signature


def verify(run: Path, public_key: Path) -> Verified:
    """Whether the signature of a run is one of this key, and its files are those that were signed.

    Raises UsageError for a run without a signature, and for what is no elliptic-curve key in PEM;
    ResourceError E-EXTRA without the extra.
    """
    sums, signature = run / SUMS, run / SIGNATURE
    if not signature.is_file():
        hint = "robustcli report RUN --sign --private-key KEY"
        raise UsageError("the run is not signed", where=str(signature), hint=hint)
    if not sums.is_file():
        return Verified(0, f"{SUMS} is missing", None)
    verifying = _library().verifying
    with _explained_key(public_key, "public"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.verify(sums, signature)
    except OSError:
        raise
    except Exception as error:  # whatever stands in a file that anybody may have written, it is no signature
        return Verified(0, _reason(error), None)
    found = parsed(read_bytes(sums, _LIMIT).decode("utf-8", "surrogateescape"), str(sums))
    return Verified(len(found), "", differences(run, found))


def _reason(error: Exception) -> str:
    text = str(error)
    if text.startswith("Signature mismatch"):
        return f"{SUMS} is not the one that was signed"
    if text.startswith("Key mismatch"):
        return "another key has signed"
    return f"{SIGNATURE} is no signature of this key ({printable(text or type(error).__name__)[:120]})"


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise ResourceError(
            f"signing needs model-signing: {error}",
            where="--sign, --verify",
            hint='pip install "robustcli[sign]"',
            code="E-EXTRA",
        ) from error
    return model_signing


@contextmanager
def _explained_key(path: Path, kind: str) -> Iterator[None]:
    """What is wrong with a key, as one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError) as error:  # AttributeError: of another algorithm
        reason = printable(str(error).partition(". ")[0])[:160]
        raise UsageError(
            f"no elliptic-curve {kind} key in PEM, without a password: {reason}",
            where=str(path),
            hint=f"a new pair: {_NEW_KEY}",
        ) from error
