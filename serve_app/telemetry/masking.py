"""Secrets and personal data out of what others may read: logs, and what leaves the cluster.

`Masks` replaces by three means: values that are known to be secret, wherever they stand; what looks like a
credential, such as a bearer token, a password in a URL or a private key; and what looks like personal
data: addresses of mail, telephone numbers, numbers of cards and accounts, public IPv4 addresses.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable

__all__ = ["MASK", "Masks", "is_secret_key", "is_secret_variable"]

MASK = "***"
"""Stands where something was."""

# Shorter ones, like a user's name, are words of the text as well.
_SHORTEST_SECRET = 8
_NAMES = r"(?:passw(?:or)?d|passwd|secret|token(?![a-z])|api[-_]?key|access[-_]?key|private[-_]?key|credential|authorization)"
_NAMED = re.compile(rf"(?i){_NAMES}")
_VARIABLE = re.compile(rf"(?i){_NAMES}|(?:^|_)(?:auth|keys?|url|dsn)$")

_CREDENTIALS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20)[\w.~+/=-]{6,}"), rf"\1\2{MASK}"),
    # user:password@ in any URL, Redis' among them. A password that nobody has escaped may hold / and @.
    (
        re.compile(r"(\b[a-zA-Z][\w+.-]{0,20}://)[^\s/@:\"'<>]{0,200}:(?!\d{1,5}(?:[/?#]|$))[^\s\"'<>]{0,500}@"),
        rf"\1{MASK}@",
    ),
    (re.compile(r"(\b[a-zA-Z][\w+.-]{0,20}://)[^\s/@\"'<>]{0,500}@"), rf"\1{MASK}@"),
    # ID:BASE64 of 32 bytes, as PARLEY_ENCRYPTION_KEYS has them.
    (re.compile(r"\b([\w.-]{1,64}:)[A-Za-z0-9+/]{43}="), rf"\1{MASK}"),
    (re.compile(r"\bpk-[\w-]{6,}"), f"pk-{MASK}"),
    (re.compile(r"\b(?:sk|hf|gh[opsu]|github_pat|glpat|xox[abp])[-_][\w-]{12,}"), MASK),
    (re.compile(r"\b(?:A[KS]IA[A-Z0-9]{16}|AIza[\w-]{35})(?![\w-])"), MASK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), MASK),
    # NAME=value, NAME: value and "name": "value", also in JSON within JSON.
    (
        re.compile(
            rf"(?i)({_NAMES}[\w-]{{0,40}}\\*[\"']?\s*[:=]\s*\\*[\"']?)"
            r"(?!\\*[\"']?(?:null|none|true|false|\*\*\*)\b)(?!bearer|basic)([^\s\"'\\,;&{}\[\]]{4,})"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)(\bAUTH\s+(?:[\w.-]+\s+)?)[^\s\"'\\]{6,}"), rf"\1{MASK}"),
)  # fmt: skip

# Bounded, and from the beginning of a word alone: a line may be one word of a megabyte.
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[a-zA-Z]{2,24}\b")
_ACCOUNT = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)")
_PHONES = (
    re.compile(r"(?<![\w+.])\+\d[\d ()./-]{6,18}\d(?!\w)"),
    re.compile(r"(?<![\w.-])00[1-9]\d?[ /-]\d[\d ()/-]{5,16}\d(?![\w-])"),
    re.compile(r"(?<![\w.-])\(?\d{3}(?:\)[ .-]?|[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)"),
    re.compile(r"(?<![\w.-])\(0\d{2,4}\)[ /-]?\d{3,8}(?![\w-])"),
    re.compile(r"(?<![\w.:/-])0[1-9]\d{1,4}[ /-]\d{5,8}(?![\w-]|\.\d)"),
    # A mobile telephone in China.
    re.compile(r"(?<![\w.-])1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})(?![\w-]|\.\d)"),
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")


class Masks:
    """Masks texts.

    Args:
        known: values that are secret wherever they stand.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for value in known for form in _forms(value)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """Return a text without secrets and personal data."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, instead in _CREDENTIALS:
            text = pattern.sub(instead, text)
        text = _MAIL.sub(MASK, text)
        text = _CARD.sub(_card, text)
        text = _ACCOUNT.sub(MASK, text)
        for pattern in _PHONES:
            text = pattern.sub(MASK, text)
        return _IPV4.sub(_address, text)


def is_secret_key(key: str) -> bool:
    """Whether what stands under a key is secret."""
    # A Secret's name is no secret.
    return _NAMED.search(key) is not None and not key.lower().endswith(("name", "ref"))


def is_secret_variable(name: str) -> bool:
    """Whether a variable of the environment is named like a secret."""
    return _VARIABLE.search(name) is not None


def _forms(value: str) -> Iterable[str]:
    """Yield a secret value, its lines and words if they are long, and all of them in Base64."""
    pieces = {value, value.strip(), *value.split()}
    if found := re.match(r"[a-zA-Z][\w+.-]*://[^/@]*:([^/@]+)@", value):
        pieces.add(found[1])
    for piece in pieces:
        if len(piece) >= _SHORTEST_SECRET:
            yield piece
            yield base64.b64encode(piece.encode()).decode()


def _card(found: re.Match[str]) -> str:
    digits = [int(sign) for sign in found[0] if sign.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]  # Luhn's rule
    return MASK if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else found[0]


def _address(found: re.Match[str]) -> str:
    try:
        public = ipaddress.ip_address(found[0]).is_global
    except ValueError:
        return found[0]  # a version
    return MASK if public else found[0]
