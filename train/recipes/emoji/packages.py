"""The packages that the emoji data set is made of: pinned by version and integrity hash, fetched by name through npm.

`npm pack NAME@VERSION` is the only outside program; `--packages DIR` takes tarballs that are already there.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cm3.tasks.plan_words import AND

# Languages whose names the model reads, by CLDR's codes; English and Arabic have templates for questions too.
LANGUAGES = tuple(AND)


@dataclass(frozen=True)
class Package:
    """One npm package.

    Attributes:
        name: the registry's name.
        version: the exact version.
        integrity: npm's `dist.integrity`: "sha512-" and the base64 digest of the tarball.
    """

    name: str
    version: str
    integrity: str

    @property
    def tarball(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Style:
    """One set of art.

    Attributes:
        word: how captions call it.
        package: where it comes from.
        licence: SPDX identifier of the art.
        licence_file: the file that states it.
        author: who drew it.
        design: styles of one design share their geometry, so a split holds them out together.
        drawn: the model draws in this style; images of the others it only reads.
    """

    word: str
    package: Package
    licence: str
    licence_file: str
    author: str
    design: str
    drawn: bool = True


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
BLOB = Package(
    "@iconify-json/noto-v1",
    "1.2.5",
    "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
EMOJIONE = Package(
    "@iconify-json/emojione",
    "1.2.3",
    "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
FXEMOJI = Package(
    "@iconify-json/fxemoji",
    "1.2.2",
    "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
)
STREAMLINE = Package(
    "@iconify-json/streamline-emojis",
    "1.2.4",
    "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
)
ICON_PARK = Package(
    "@iconify-json/icon-park",
    "1.2.4",
    "sha512-S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
)
ANNOTATIONS = Package(
    "cldr-annotations-full",
    "48.2.0",
    "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
DERIVED = Package(
    "cldr-annotations-derived-full",
    "48.2.0",
    "sha512-log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)

STYLES = (
    Style("noto", NOTO, "Apache-2.0", "info.json", "Google Inc", "noto"),
    Style("blob", BLOB, "Apache-2.0", "info.json", "Google Inc", "blob", drawn=False),
    Style("twemoji", TWEMOJI, "CC-BY-4.0", "info.json", "Twitter, Inc and other contributors", "twemoji"),
    Style("fluent flat", FLUENT_FLAT, "MIT", "info.json", "Microsoft Corporation", "fluent"),
    Style("emojione", EMOJIONE, "CC-BY-4.0", "info.json", "Emoji One", "emojione", drawn=False),
    Style(
        "fluent 3d",
        FLUENT_3D,
        "MIT",
        "package.json",
        "Microsoft Corporation (packed by LobeHub)",
        "fluent",
        drawn=False,
    ),
)
# Art of fewer things, without code points: it is shown and asked about, never asked for by its style.
EXTRA_STYLES = (
    Style("fxemoji", FXEMOJI, "Apache-2.0", "info.json", "Mozilla", "fxemoji"),
    Style("streamline", STREAMLINE, "CC-BY-4.0", "info.json", "Streamline", "streamline"),
    Style("icon park", ICON_PARK, "Apache-2.0", "info.json", "ByteDance", "icon park"),
)
PACKAGES = (*(style.package for style in (*STYLES, *EXTRA_STYLES)), ANNOTATIONS, DERIVED, EMOJIBASE)


def integrity(path: Path) -> str:
    """npm's integrity string of a tarball."""
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, fetched if it is not there, checked by its hash in any case.

    Raises:
        ValueError: npm is missing, the registry cannot be reached, or the tarball is not the pinned one.
    """
    path = folder / package.tarball
    if not path.exists():
        if shutil.which("npm") is None:
            raise ValueError("npm was not found: install Node.js, or name a folder of tarballs with --packages DIR")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired as error:
            path.unlink(missing_ok=True)
            raise ValueError(f"{' '.join(command)} did not finish in 10 minutes: is the registry in reach?") from error
        if result.returncode != 0 or not path.exists():
            path.unlink(missing_ok=True)
            reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
            raise ValueError(f"{' '.join(command)} failed ({reason}): is the network up and the disk not full?")
    if (found := integrity(path)) != package.integrity:
        raise ValueError(
            f"{path} is not {package.name} {package.version}: {found[:20]}..., pinned "
            f"{package.integrity[:20]}...; delete it and run again"
        )
    return path


class Tarball:
    """Read access to a package's files, held in memory once read.

    Args:
        path: the tarball.
        languages: of the annotations that are read; None for all of the over a hundred.
    """

    def __init__(self, path: Path, languages: Collection[str] | None = LANGUAGES):
        with tarfile.open(path) as tar:
            self._files = {
                member.name.removeprefix("package/"): source.read()
                for member in tar
                if member.isfile() and (source := tar.extractfile(member)) and _wanted(member.name, languages)
            }

        self._parsed: dict[str, Any] = {}

    def json(self, name: str) -> Any:
        if name not in self._parsed:
            self._parsed[name] = json.loads(self._files[name])
        return self._parsed[name]

    def read(self, name: str) -> bytes:
        return self._files[name]

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)


def _wanted(name: str, languages: Collection[str] | None) -> bool:
    if "/annotations" in name and languages is not None:
        return any(f"/{language}/" in name for language in languages)
    return name.endswith((".webp", ".json"))
