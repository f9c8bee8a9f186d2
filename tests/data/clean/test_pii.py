import pytest

from data.clean.document import mend
from data.clean.excerpt import RAW, excerpt
from data.clean.pii import KINDS, masked
from data.clean.rules import Clean

GITHUB = "ghp_" + "a1B2c3D4e5F6" * 3
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + ("MIIEpAIBAAKCAQEA7bq0Zz8kLmNoPqRsTuVwXyZ0123456789abcd\n" * 8) + (
    "-----END RSA PRIVATE KEY-----"
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+news@mail.example-corp.co.uk today", "write to [EMAIL] today"),
        ("Jane <jane@corp.de>, Bob (bob@corp.de).", "Jane <[EMAIL]>, Bob ([EMAIL])."),
        ("mailto:jane@corp.de", "mailto:jane@corp.de"),  # an address in a URL is the page's
        ("联系jane@corp.de谢谢", "联系[EMAIL]谢谢"),
        ("from 93.184.216.34 port 80", "from [IP] port 80"),
        ("http://93.184.216.34/x", "http://93.184.216.34/x"),
        ("host 2606:2800:220:1:248:1893:25c8:1946 up", "host [IP] up"),
        ("call +44 20 7946 0123 now", "call [PHONE] now"),
        ("(212) 555-0123 or 212-555-0199", "[PHONE] or [PHONE]"),
        ("手机：138 1234 5678，座机010-62345678", "手机：[PHONE]，座机[PHONE]"),
        ("tel: 13812345678", "tel: [PHONE]"),
        ("key AKIAIOSFODNN7EXAMPLE used", "key [SECRET] used"),
        (f"token {GITHUB}!", "token [SECRET]!"),
        ("xoxb-123456789012-abcdefABCDEF", "[SECRET]"),
        (f"Bearer {JWT}", "Bearer [SECRET]"),
        (f"a\n{KEY}\nb", "a\n[SECRET]\nb"),
        ('API_KEY = "x9Kf3mQz7TbW2vLpR8sN"', 'API_KEY = "[SECRET]"'),
        ("client_secret: x9Kf3mQz7TbW2vLpR8sN", "client_secret: [SECRET]"),
    ],
)
def test_personal_data_and_secrets_are_masked_by_what_they_are(text, expected):
    found, told = masked(text, KINDS)
    assert found == expected.replace("[IP]/x", "93.184.216.34/x")
    assert masked(found, KINDS) == (found, {})
    assert sum(held.bytes for held in told.values()) == len(text.encode()) - len(found.encode())
    for kind, held in told.items():
        mask = f"[{kind.upper()}]"
        assert held.count == found.count(mask)
        assert found.startswith(mask, held.at)


@pytest.mark.parametrize(
    "text",
    [
        "@decorator\ndef f(self): return a@b",
        "git@github.com:team/project.git and user@example.com",
        "icon@2x.png",
        "version 4.15.0.112, release 10.11.12.134",
        "127.0.0.1, 192.168.10.20, 10.0.200.100, 255.255.255.0, 203.0.113.77, 1.2.3.4",
        "section 13.15.22.31 of the standard",
        "std::vector<int>::iterator a::b::c, 12:30:45, fe80::1, ::1",
        "d41d8cd98f00b204e9800998ecf8427e and 1234567890123456",
        "total 14511243264 bytes, +4294967296, 2020-01-02 10:11:12, 3.14159265358979",
        "ISBN 978-3-16-148410-0, 1,234,567,890, 555-0123",
        "password = get_password_from_the_environment(name)",
        'token = "aaaaaaaaaaaaaaaaaaaaaaaa"',
        "secret_name: my-team-production-database-password",
        "the task-oriented-dialogue-benchmark-of-the-year",
        "-----BEGIN RSA PRIVATE KEY-----\n... (the key in base64) ...\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert masked(text, KINDS) == (text, {})


def test_only_the_kinds_asked_for_are_masked():
    assert masked("jane@corp.de 93.184.216.34", ["ip"])[0] == "jane@corp.de [IP]"


def test_the_standard_library_loses_no_version_digest_or_code(code_texts):
    """In all of it (1,786 files, 31.5 MB): no secret; four telephone numbers, all in `tel:` addresses; one time of day
    taken for an address. Here one package of it."""
    told = [masked(text, ("secret", "ip", "phone"))[1] for text in code_texts]
    assert sum(bool(kinds) for kinds in told) == 0


def test_an_excerpt_is_short_on_one_line_and_without_personal_data():
    shown = excerpt(f"jane@corp.de\n\n {GITHUB}\x07 " + "word " * 100)
    assert shown.startswith("[EMAIL] [SECRET]\\x07 word word")
    assert len(shown) <= 130
    assert excerpt("x\n" + KEY + KEY) == "x [SECRET]"


@pytest.mark.parametrize("begin", range(30, 70))
def test_an_excerpt_shows_no_half_of_what_it_would_mask_whole(begin):
    key = "AKIA" + "IOSFODNN7EXAMPLQ"
    for secret in ("+44 20 7946 0123", key):
        text = f"{secret} {'b ' * (begin // 2)}joe@company.org {'c' * 50}"
        (change,) = mend(text, Clean(pii=("email",)))[1]
        shown = excerpt(change.sample)
        assert not any(secret[-length:] in shown for length in range(4, len(secret)))
    assert "joe" not in excerpt(f"x{' ' * (RAW - 2 - begin % 20)}joe.smith@company.org")
