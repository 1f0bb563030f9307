"""JSON Schema's formats of texts as regular expressions, for texts that stand between tags and not in JSON.

Every text that an expression allows is of the format. Some that are seldom written are left out: leap seconds, small
letters in dates, quoted names and addresses by number in mail, addresses of machines by number in URIs.
RFC 3339 (dates, durations), 5321 (mail), 1123 (names of machines), 4291 (IPv6), 9562 (UUID), 3986 (URI).
"""

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_LONG, _SHORT = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])", "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DATE = f"(?:[0-9]{{4}}-(?:{_LONG}|{_SHORT}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-]{_CLOCK})"

_HOURS = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_YEARS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_GROUP}:){{7}}{_GROUP}"]
    + [f"(?:{_GROUP}(?::{_GROUP}){{0,{left}}})?::(?:{_GROUP}(?::{_GROUP}){{0,{5 - left}}})?" for left in range(6)]
    + [f"{_GROUP}(?::{_GROUP}){{6}}::|::{_GROUP}(?::{_GROUP}){{6}}"]
)

_PLAIN = "[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}"
_IN_PATH = f"(?:{_PLAIN}|[:@])"
_AFTER = f"(?:{_PLAIN}|[:@/?])*"
_AUTHORITY = f"//(?:(?:{_PLAIN}|:)*@)?(?:{_PLAIN})*(?::[0-9]*)?(?:/{_IN_PATH}*)*"
_PATH = f"/?(?:{_IN_PATH}+(?:/{_IN_PATH}*)*)?"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:[0-9]+W|{_YEARS}(?:{_HOURS})?|{_HOURS})",
    "hostname": _HOST,
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:(?:{_AUTHORITY}|{_PATH})(?:\?{_AFTER})?(?:#{_AFTER})?",
}
"""Name -> expression of the whole text; `/` is not escaped."""
