"""A single file of the web, such as an archive of pictures."""

import netrc
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import msgspec

from peftbench.addresses import without_secrets
from peftbench.errors import UserError
from peftbench.retrieve.local import copy_or_link
from peftbench.retrieve.transfer import (
    FAULTS,
    Digests,
    Known,
    Refused,
    Transfer,
    digests_of,
    explain,
    in_words,
)
from peftbench.store import atomic_bytes

FINGERPRINT_EXEMPT = "carries bytes that are verified; cannot change them"


def retrieve(url: str, sha256: str, out_dir: Path, staging: Path, mirrors: dict[str, str]) -> dict[str, Any]:
    """Download ``url`` to ``out_dir`` under its base name, resumed from ``staging``; return the facts.

    Its sha256 is compared where given. ``UserError`` where it cannot be had or is another file.
    """
    address = mirrored(url, mirrors)
    target = out_dir / base_name(url)
    if not address.startswith(("http://", "https://")):
        return _from_folder(url, Path(address.removeprefix("file://")), sha256, target)
    part = staging / "part"
    with httpx2.Client(auth=_passwords()) as client:
        transfer = Transfer(lambda: client)
        for last_try in (False, True):
            digests = _download(transfer, url, address, part)
            if sha256 in ("", digests.sha256):
                break
            part.unlink(missing_ok=True)
            if last_try:
                raise _another(f"{url}: came twice", digests.sha256, sha256)
    shutil.move(part, target)
    return _facts(target, digests, without_secrets(address), transfer.fetched)


def _passwords() -> httpx2.Auth | None:
    """What ``~/.netrc`` says of hosts that want a password: addresses hold none, as they are stored."""
    if not Path("~/.netrc").expanduser().is_file():
        return None
    try:
        return httpx2.NetRCAuth()
    except (OSError, netrc.NetrcParseError) as error:
        what = error.msg if isinstance(error, netrc.NetrcParseError) else error.strerror
        raise UserError(f"~/.netrc: {what}: mend it, or close it to others (chmod 600)") from None


def _from_folder(url: str, path: Path, sha256: str, target: Path) -> dict[str, Any]:
    """From a mirror that is a folder."""
    try:
        copy_or_link(path, target)
    except FileNotFoundError:
        raise UserError(
            f"{url}: its mirror {path} does not exist: put it there, or correct 'mirrors'"
        ) from None
    digests = digests_of(target)
    if sha256 not in ("", digests.sha256):
        raise _another(f"{url}: its mirror {path}", digests.sha256, sha256)
    return _facts(target, digests, str(path), 0)


def _facts(target: Path, digests: Digests, resolved: str, fetched: int) -> dict[str, Any]:
    return {
        "files": {target.name: {"size": digests.size, "sha256": digests.sha256}},
        "bytes": digests.size,
        "resolved": resolved,
        "fetched": fetched,
    }


def _another(what: str, found: str, wanted: str) -> UserError:
    return UserError(
        f"{what} with sha256 {found} instead of {wanted}: the file has changed, or something on the way alters it;"
        " correct sha256 only if the new file is what you want"
    )


def mirrored(url: str, mirrors: dict[str, str]) -> str:
    """The address to ask: the longest beginning of ``url`` that has a mirror is replaced."""
    known = [prefix for prefix in mirrors if url.startswith(prefix)]
    if not known:
        return url
    prefix = max(known, key=len)
    return mirrors[prefix] + url.removeprefix(prefix)


def base_name(url: str) -> str:
    """File name in an address, without its query; ``UserError`` where it has none."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{url}: the address ends in no file name")
    return name


def _download(transfer: Transfer, url: str, address: str, part: Path) -> Digests:
    state = part.with_suffix(".json")
    known = _read(state, without_secrets(address))
    if known is None:  # nobody knows what the part is a part of
        part.unlink(missing_ok=True)

    def started(response: httpx2.Response) -> Known:
        _refuse_page(url, response)
        learnt = Known.of(without_secrets(address), response)
        part.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(part.parent).free
        if learnt.size is not None and learnt.size > free:
            raise UserError(
                f"{url}: needs {in_words(learnt.size)}, {part.parent} has {in_words(free)} free: make room and run"
                " again"
            )
        atomic_bytes(state, msgspec.json.encode(learnt))
        return learnt

    try:
        return transfer.download(url, address, part, {}, known=known, started=started)
    except Refused as error:
        via = f" (by way of {address})" if address != url else ""
        if error.status in (404, 410):
            raise UserError(
                f"{url}: there is no such file{via} (HTTP {error.status}): correct the url, or name a mirror under"
                " 'mirrors' of the execution settings"
            ) from None
        if error.status in (401, 403):
            raise UserError(
                f"{url}: access is refused{via} (HTTP {error.status}): download it by hand and use 'path:' instead of"
                " 'url:'"
            ) from None
        raise explain(error, url, address) from None
    except FAULTS as error:
        raise explain(error, url, address) from None
    except (httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
        raise UserError(f"{address}: {error}: correct the url") from None


def _read(state: Path, address: str) -> Known | None:
    """What an earlier try learnt of the file; None where that does not allow to go on."""
    try:
        known = msgspec.json.decode(state.read_bytes(), type=Known)
    except (OSError, msgspec.DecodeError):
        return None
    return known if known.address == address and known.validator else None


def _refuse_page(url: str, response: httpx2.Response) -> None:
    """Sites that want a log-in or a click answer with a page, and a status that says all is well."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if kind == "text/html" and not base_name(url).endswith((".html", ".htm")):
        raise UserError(
            f"{url}: a web page came instead of the file (a log-in, perhaps): download it by hand and use 'path:'"
            " instead of 'url:'"
        )
