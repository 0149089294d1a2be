"""Which proxy a URL goes through."""

import pytest

from apparate.errors import InvalidArgument
from apparate.registry.proxies import ProxyRules

RULES = ProxyRules.from_environment(
    {
        "HTTP_PROXY": "plain.proxy:3128",
        "https_proxy": "http://user:pw@tls.proxy:3129",
        "NO_PROXY": "example.com, .internal,10.0.0.0/8,192.0.2.7,[fd00::1],registry.test:5000,*.star.test",
    }
)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://other.test/", "http://plain.proxy:3128"),
        ("https://other.test/", "http://user:pw@tls.proxy:3129"),
        ("https://localhost:5000/", ""),
        ("https://127.0.0.9/", ""),
        ("https://[::1]:5000/", ""),
        ("https://example.com/", ""),
        ("https://EXAMPLE.com/", ""),
        ("https://a.example.com/", ""),
        ("https://badexample.com/", "http://user:pw@tls.proxy:3129"),
        ("https://a.internal/", ""),
        ("https://internal/", "http://user:pw@tls.proxy:3129"),
        ("https://10.2.3.4:443/", ""),
        ("https://11.2.3.4/", "http://user:pw@tls.proxy:3129"),
        ("https://192.0.2.7/", ""),
        ("https://[fd00::1]/", ""),
        ("https://registry.test:5000/", ""),
        ("https://registry.test/", "http://user:pw@tls.proxy:3129"),
        ("https://x.star.test/", ""),
    ],
)
def test_proxy_of_a_url(url: str, proxy: str) -> None:
    assert RULES.proxy_for(url) == proxy


def test_star_excludes_everything_and_nothing_means_direct() -> None:
    assert ProxyRules("http://p", "http://p", ("*",)).proxy_for("https://other.test/") == ""
    assert ProxyRules.from_environment({}).proxy_for("https://other.test/") == ""


@pytest.mark.parametrize("value", ["http://", "http://user:hunter2@proxy:port", "http://[::1", "http://p:0"])
def test_proxy_that_is_no_url_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(InvalidArgument, match="HTTPS_PROXY") as caught:
        ProxyRules.from_environment({"HTTPS_PROXY": value})
    assert "hunter2" not in str(caught.value)
